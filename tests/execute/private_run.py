"""A process with a private Ray, for tests that watch one from outside: `report`, `eat` memory, or `wait` in a task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import task_functions as functions

from raymerge.errors import ExecutionError
from raymerge.events import Event, TaskRetried, TaskStarted
from raymerge.execute.ray.options import RayOptions
from raymerge.execute.ray.session import RaySession


def main(what: str, path: str) -> None:
    with RaySession(num_cpus=1) as session:
        session.wait()
        from raymerge.execute.ray.capacity import living_nodes
        from raymerge.execute.ray.executor import run_on_ray

        if what == "report":
            import ray

            outcomes = run_on_ray(functions.die_once, functions.tasks_of(path), on_event=lambda _: None, options=QUICK)
            address = ray.get_runtime_context().gcs_address
            report = {
                "nodes": len(living_nodes()),
                "address": address,
                "results": [each.result for each in outcomes],
                "autoscalers": sum("/monitor.py" in command for command in own_processes()),
            }
            sys.stdout.write(json.dumps(report))
        elif what == "eat":
            report = eat(*map(int, path.split(":")))
            sys.stdout.write(json.dumps(report))
        else:
            list(run_on_ray(functions.ignore_interrupts, functions.tasks_of(path), on_event=announce))


def own_processes() -> list[str]:
    """The command lines of this process's children."""
    children = [pid for listed in Path("/proc/self/task").glob("*/children") for pid in listed.read_text().split()]
    return [Path("/proc", pid, "cmdline").read_text().replace("\0", " ") for pid in children]


def eat(nbytes: int, count: int) -> dict[str, object]:
    """`count` tasks that ask for 0.4 of the node's memory each, so that two fit until the first request is doubled."""
    from raymerge.execute.ray.capacity import largest_memory, living_nodes
    from raymerge.execute.ray.executor import run_on_ray

    events: list[Event] = []
    tasks = functions.tasks_of(*[nbytes] * count, memory_bytes=int(largest_memory(living_nodes()) * 0.4))
    options = RayOptions(task_cpus=0.5, retry_wait_seconds=0.5, settle_seconds=0)
    finished, error = 0, ""
    try:
        for _ in run_on_ray(functions.eat, tasks, on_event=events.append, options=options):
            finished += 1
    except ExecutionError as failure:
        error = str(failure)
    retries = [event.cause for event in events if isinstance(event, TaskRetried)]
    return {"finished": finished, "error": error, "retries": retries}


QUICK = RayOptions(retry_wait_seconds=0.05, settle_seconds=0.1)


def announce(event: Event) -> None:
    if isinstance(event, TaskStarted):
        sys.stdout.write("started\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
