"""What the tasks of these tests do; Ray workers import it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymerge.errors import ExecutionError, TransientStorageError
from raymerge.execute.task import Measured, StoppedError, Task, stop_requested


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    value: int
    read_bytes: int = 0


def tasks_of(*payloads: object, memory_bytes: int = 2**20) -> list[Task]:
    return [
        Task(name=f"t{index}", payload=payload, memory_bytes=memory_bytes) for index, payload in enumerate(payloads)
    ]


def square(number: int) -> Receipt:
    """Takes longer the smaller the number, so that tasks end out of order."""
    time.sleep(max(0, 20 - number) / 400)
    return Receipt(value=number * number, read_bytes=number)


def measure(receipt: Receipt) -> Measured:
    return Measured(receipt.read_bytes, 2 * receipt.read_bytes)


def note(path: str, text: str = "x") -> int:
    """Append a line; returns how many there were before."""
    before = runs(path)
    with Path(path).open("a") as file:
        file.write(text + "\n")
    return before


def runs(path: str) -> int:
    return len(lines(path))


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def die_once(path: str) -> str:
    if note(path) == 0:
        os._exit(1)
    return "survived"


def die_always(path: str) -> None:
    import ray

    note(path, str(int(ray.get_runtime_context().get_assigned_resources()["memory"])))
    os._exit(1)


def storage_fault(work: tuple[str, int]) -> str:
    """Fails `count` times, then answers."""
    path, count = work
    if note(path) < count:
        raise TransientStorageError("503 SlowDown")
    return "read"


def fail_or_sleep(work: tuple[str, str]) -> None:
    """One task fails on purpose once another sleeps; the others note their start and sleep."""
    path, what = work
    if what == "sleep":
        note(path, "sleeping")
        time.sleep(60)
        note(path, "woke")
    while runs(path) == 0:
        time.sleep(0.02)
    note(path + ".failed")
    if what == "own":
        raise ExecutionError("tensor a: found 3, expected 4")
    raise KeyError("a")


def clean_up_when_cancelled(path: str) -> None:
    try:
        note(path, "started")
        while True:
            time.sleep(0.02)  # Ray's interrupt arrives between two calls, not within one
    finally:
        time.sleep(0.5)
        note(path, "cleaned up")


def ignore_interrupts(path: str) -> None:
    note(path, str(os.getpid()))
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:  # noqa: PERF203
            note(path, "ignored")


def work_until_stopped(path: str) -> None:
    note(path, "started")
    while not stop_requested():
        time.sleep(0.02)
    note(path, "stopped")
    raise StoppedError


def wait_on_first_node(path: str) -> str:
    """Notes its node and process and waits for ever, the first time; answers with its node, the next."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    if runs(path) == 0:
        note(path, f"{node_id}\n{os.getpid()}")
        time.sleep(600)
    return node_id


def eat(nbytes: int) -> int:
    held = np.ones(nbytes, dtype=np.uint8)
    time.sleep(5)
    return int(held[-1])


def run_nested(numbers: list[int]) -> list[int]:
    """A run inside a Ray task."""
    from raymerge.execute.ray.executor import run_on_ray
    from raymerge.execute.ray.session import RaySession

    with RaySession() as session:
        session.wait()
        outcomes = list(run_on_ray(square, tasks_of(*numbers), on_event=lambda _: None))
    return sorted(outcome.result.value for outcome in outcomes)


def rest(work: tuple[str, float]) -> str:
    """Sleep in slices that an interrupt can end, noting where it runs; answers with the node."""
    import ray

    path, seconds = work
    node_id = str(ray.get_runtime_context().get_node_id())
    note(path, node_id)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            time.sleep(0.02)
    except KeyboardInterrupt:
        note(path, "interrupted")
        raise
    return node_id


def hang_once(path: str) -> str:
    """Sleeps a moment; of the path that ends in "hangs", for ever at its first attempt."""
    if path.endswith("hangs") and note(path) == 0:
        while True:
            time.sleep(0.02)
    time.sleep(0.2)
    return path
