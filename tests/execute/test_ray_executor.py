"""Laws of running tasks on Ray, shown on one private Ray with two CPUs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import task_functions as functions

from raymerge.errors import ExecutionError, TransientStorageError
from raymerge.events import Event, Message, TaskFinished, TaskRetried, TaskStarted
from raymerge.execute.inline import run_inline
from raymerge.execute.ray import executor
from raymerge.execute.ray.executor import run_on_ray
from raymerge.execute.ray.faults import classify
from raymerge.execute.ray.growth import nodes_are_coming
from raymerge.execute.ray.options import RayOptions
from raymerge.execute.ray.session import RaySession

pytestmark = pytest.mark.usefixtures("_private_ray")
QUICK = RayOptions(retry_wait_seconds=0.05, settle_seconds=0.1, unschedulable_seconds=0, measure=functions.measure)
PLAIN = RayOptions(retry_wait_seconds=0.05, settle_seconds=0.1, unschedulable_seconds=0)


@pytest.fixture(scope="module")
def _private_ray() -> Iterator[None]:
    with RaySession("local", num_cpus=2) as session:
        session.wait()
        yield


def quiet(_event: Event) -> None:
    pass


def retries_of(events: list[Event]) -> list[TaskRetried]:
    return [event for event in events if isinstance(event, TaskRetried)]


@pytest.mark.parametrize("seed", [0, 1])
def test_results_do_not_depend_on_the_order_of_tasks_nor_on_the_executor(seed: int) -> None:
    tasks = functions.tasks_of(*range(20))
    expected = {outcome.name: outcome.result for outcome in run_inline(functions.square, tasks, on_event=quiet)}
    random.Random(seed).shuffle(tasks)
    outcomes = list(run_on_ray(functions.square, tasks, on_event=quiet, options=QUICK))
    assert {outcome.name: outcome.result for outcome in outcomes} == expected
    assert len(outcomes) == len(tasks)


def test_events_name_the_node_and_the_bytes() -> None:
    events: list[Event] = []
    (outcome,) = run_on_ray(functions.square, functions.tasks_of(3), on_event=events.append, options=QUICK)
    here = ray.util.get_node_ip_address()
    started, finished = events
    assert started == TaskStarted(task="t0", node=here)
    assert isinstance(finished, TaskFinished)
    assert (finished.node, finished.read_bytes, finished.written_bytes) == (here, 3, 6)
    assert (outcome.node, outcome.seconds) == (here, finished.seconds)
    assert outcome.seconds > 0


def test_a_partial_carries_its_settings_and_max_tasks_bounds_the_tasks_in_flight(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    function = partial(_overlap, path=path)
    options = RayOptions(max_tasks=1, unschedulable_seconds=0)
    outcomes = list(run_on_ray(function, functions.tasks_of(1, 2, 3), on_event=quiet, options=options))
    assert [outcome.result for outcome in outcomes] == [0, 0, 0]


def _overlap(_number: int, *, path: str) -> int:
    before = len(functions.lines(path)) % 2
    functions.note(path)
    time.sleep(0.05)
    functions.note(path)
    return before


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    events: list[Event] = []
    tasks = functions.tasks_of(str(tmp_path / "runs"))
    (outcome,) = run_on_ray(functions.die_once, tasks, on_event=events.append, options=PLAIN)
    assert outcome.result == "survived"
    assert [(event.cause, event.attempt, event.limit) for event in retries_of(events)] == [("worker died", 1, 3)]


def test_a_worker_that_always_dies_is_given_up_after_three_retries_with_doubled_memory(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    tasks = functions.tasks_of(path, memory_bytes=16 * 2**20)
    with pytest.raises(ExecutionError, match=r"t0: given up after 3 retries.*0\.12 GiB of memory"):
        list(run_on_ray(functions.die_always, tasks, on_event=quiet, options=PLAIN))
    assert [int(line) for line in functions.lines(path)] == [16 * 2**20 * factor for factor in (1, 2, 4, 8)]


@pytest.mark.slow
def test_doubling_stops_at_the_largest_node(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    total = int(ray.cluster_resources()["memory"])
    tasks = functions.tasks_of(path, memory_bytes=total * 2 // 3)
    with pytest.raises(ExecutionError, match="given up after 3 retries"):
        list(run_on_ray(functions.die_always, tasks, on_event=quiet, options=PLAIN))
    assert [int(line) for line in functions.lines(path)] == [total * 2 // 3, total, total, total]


def test_a_storage_fault_is_retried_three_times(tmp_path: Path) -> None:
    events: list[Event] = []
    path = str(tmp_path / "passes")
    (outcome,) = run_on_ray(
        functions.storage_fault, functions.tasks_of((path, 3)), on_event=events.append, options=PLAIN
    )
    assert outcome.result == "read"
    assert [(event.cause, event.attempt) for event in retries_of(events)] == [("storage", i) for i in (1, 2, 3)]
    assert all(event.node for event in retries_of(events))

    path = str(tmp_path / "stays")
    with pytest.raises(ExecutionError, match=r"given up after 3 retries.*503 SlowDown"):
        list(run_on_ray(functions.storage_fault, functions.tasks_of((path, 99)), on_event=quiet, options=PLAIN))
    assert functions.runs(path) == 4


@pytest.mark.parametrize(
    ("kind", "message"),
    [("own", "^tensor a: found 3, expected 4$"), ("other", "^t1: the task failed on .* with KeyError: 'a'$")],
)
def test_an_error_of_the_task_is_raised_once_and_the_rest_is_cancelled(tmp_path: Path, kind: str, message: str) -> None:
    path, events = str(tmp_path / "runs"), []
    tasks = functions.tasks_of((path, "sleep"), (path, kind), (path, "sleep"))
    started = time.monotonic()
    with pytest.raises(ExecutionError, match=message):
        list(run_on_ray(functions.fail_or_sleep, tasks, on_event=events.append, options=PLAIN))
    assert time.monotonic() - started < 10
    assert functions.runs(path + ".failed") == 1
    assert not retries_of(events)
    assert free_cpus_within(5) == 2
    assert "woke" not in functions.lines(path)


def test_a_cancelled_task_has_time_to_clean_up(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")

    def interrupt(event: Event) -> None:
        while not functions.lines(path):
            time.sleep(0.02)
        _interrupt_on_start(event)

    with pytest.raises(KeyboardInterrupt):
        next(run_on_ray(functions.clean_up_when_cancelled, functions.tasks_of(path), on_event=interrupt))
    assert functions.lines(path) == ["started", "cleaned up"]


def test_an_interrupt_ends_the_run_within_seconds_even_where_tasks_do_not_listen(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")

    def interrupt(event: Event) -> None:
        while not functions.lines(path):
            time.sleep(0.02)
        _interrupt_on_start(event)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(
            run_on_ray(
                functions.ignore_interrupts, functions.tasks_of(path, path + "2", path + "3"), on_event=interrupt
            )
        )
    assert time.monotonic() - started < 8
    assert free_cpus_within(5) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(int(functions.lines(path)[0]), 0)


def _interrupt_on_start(event: Event) -> None:
    if isinstance(event, TaskStarted):
        raise KeyboardInterrupt


def free_cpus_within(seconds: float) -> float:
    deadline = time.monotonic() + seconds
    while ray.available_resources().get("CPU", 0.0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return ray.available_resources().get("CPU", 0.0)


@pytest.mark.point(3, "a request that no node can hold")
@pytest.mark.parametrize(
    ("memory_bytes", "task_cpus", "asked"),
    [(2**45, 1, "1 CPU, 32768.00 GiB memory"), (2**20, 3, "3 CPU, 0.00 GiB memory")],
)
def test_what_no_node_can_hold_is_refused_naming_what_was_asked_and_what_exists(
    memory_bytes: int, task_cpus: float, asked: str
) -> None:
    options = RayOptions(task_cpus=task_cpus, unschedulable_seconds=0)
    tasks = functions.tasks_of(1, memory_bytes=memory_bytes)
    with pytest.raises(ExecutionError, match=f"asks for {asked}, the living nodes have 1 x 2 CPU"):
        list(run_on_ray(functions.square, tasks, on_event=quiet, options=options))


def test_no_room_waits_while_nodes_are_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    coming, events = iter([True, False]), []
    monkeypatch.setattr(executor, "nodes_are_coming", lambda: next(coming))
    monkeypatch.setattr(executor, "_NODES_SECONDS", 0.1)
    with pytest.raises(ExecutionError, match="no node can hold"):
        list(
            run_on_ray(
                functions.square, functions.tasks_of(1, memory_bytes=2**45), on_event=events.append, options=PLAIN
            )
        )
    assert [event.level for event in events if isinstance(event, Message)] == ["warning"]


def test_an_autoscaler_report_tells_whether_nodes_are_coming() -> None:
    gcs = ray._private.worker.global_worker.gcs_client
    assert not nodes_are_coming()
    gcs.internal_kv_put(
        b"__autoscaling_status", b'{"autoscaler_report": {"pending_launches": {"spot": 2}}}', True, None
    )
    assert nodes_are_coming()
    gcs.internal_kv_del(b"__autoscaling_status", False, None)


def test_a_run_inside_a_ray_task_uses_the_ray_it_is_in() -> None:
    nested = ray.remote(functions.run_nested)
    assert ray.get(nested.remote([1, 2, 3]), timeout=60) == [1, 4, 9]


def test_a_run_of_no_tasks_ends() -> None:
    assert list(run_on_ray(functions.square, [], on_event=quiet)) == []


def test_payloads_above_the_inline_limit_of_ray_arrive(tmp_path: Path) -> None:
    payload = list(range(200_000))
    (outcome,) = run_on_ray(len, functions.tasks_of(payload), on_event=quiet, options=PLAIN)
    assert outcome.result == 200_000


@pytest.mark.parametrize(
    ("error", "cause", "limit"),
    [
        (ray.exceptions.NodeDiedError("x"), "node lost", None),
        (ray.exceptions.LocalRayletDiedError(), "node lost", None),
        (ray.exceptions.OwnerDiedError("00", b"", ""), "node lost", None),
        (ray.exceptions.OutOfMemoryError("x"), "out of memory", 3),
        (ray.exceptions.WorkerCrashedError(), "worker died", 3),
        (ray.exceptions.RuntimeEnvSetupError("x"), "set-up", 3),
        (ray.exceptions.RaySystemError("x"), "ray", 5),
        (ray.exceptions.RpcError("x"), "ray", 5),
        (ray.exceptions.RayTaskError("f", "trace", TransientStorageError("x")), "storage", 3),
    ],
)
def test_what_is_tried_again(error: Exception, cause: str, limit: int | None) -> None:
    fault = classify(error)
    assert fault is not None
    assert (fault.cause, fault.limit) == (cause, limit)


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.RayTaskError("f", "trace", ValueError("x")),
        ray.exceptions.RayTaskError("f", "trace", ExecutionError("x")),
        ray.exceptions.TaskCancelledError(),
        ray.exceptions.TaskUnschedulableError("x"),
    ],
)
def test_what_is_not(error: Exception) -> None:
    assert classify(error) is None
