"""Laws of running tasks in this process."""

from __future__ import annotations

import _thread
import threading
import time
from pathlib import Path

import pytest
import task_functions as functions

from raymerge.errors import ExecutionError, TransientStorageError
from raymerge.events import Event, TaskFinished, TaskRetried, TaskStarted
from raymerge.execute.inline import run_inline
from raymerge.execute.task import stop_requested


def quiet(_event: Event) -> None:
    pass


@pytest.mark.parametrize("max_tasks", [1, 3, 50])
def test_every_task_gives_its_outcome_whatever_the_number_of_threads(max_tasks: int) -> None:
    outcomes = run_inline(functions.square, functions.tasks_of(*range(20)), on_event=quiet, max_tasks=max_tasks)
    assert {outcome.name: outcome.result.value for outcome in outcomes} == {f"t{i}": i * i for i in range(20)}


def test_no_more_than_max_tasks_run_at_a_time() -> None:
    running, peaks, lock = set(), [], threading.Lock()

    def count(number: int) -> None:
        with lock:
            running.add(number)
            peaks.append(len(running))
        time.sleep(0.01)
        with lock:
            running.remove(number)

    list(run_inline(count, functions.tasks_of(*range(20)), on_event=quiet, max_tasks=3))
    assert max(peaks) == 3


def test_events_come_from_the_iterating_thread_and_carry_the_measured_bytes() -> None:
    events: list[tuple[Event, threading.Thread]] = []
    outcomes = run_inline(
        functions.square,
        functions.tasks_of(*range(4)),
        on_event=lambda event: events.append((event, threading.current_thread())),
        max_tasks=2,
        measure=functions.measure,
    )
    list(outcomes)
    assert {thread for _, thread in events} == {threading.current_thread()}
    finished = {event.task: event for event, _ in events if isinstance(event, TaskFinished)}
    assert {(name, event.read_bytes, event.written_bytes) for name, event in finished.items()} == {
        (f"t{i}", i, 2 * i) for i in range(4)
    }
    assert len([event for event, _ in events if isinstance(event, TaskStarted)]) == 4


def test_a_storage_fault_is_tried_three_times_more(tmp_path: Path) -> None:
    path, events = str(tmp_path / "runs"), []
    tasks = functions.tasks_of((path, 3))
    outcomes = list(run_inline(functions.storage_fault, tasks, on_event=events.append, retry_wait_seconds=0.01))
    assert [outcome.result for outcome in outcomes] == ["read"]
    retries = [event for event in events if isinstance(event, TaskRetried)]
    assert [(event.cause, event.attempt, event.limit) for event in retries] == [("storage", i, 3) for i in (1, 2, 3)]


def test_a_storage_fault_that_stays_is_raised_after_four_attempts(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    with pytest.raises(TransientStorageError):
        list(
            run_inline(functions.storage_fault, functions.tasks_of((path, 99)), on_event=quiet, retry_wait_seconds=0.01)
        )
    assert functions.runs(path) == 4


def test_another_error_is_raised_once_and_nothing_more_starts() -> None:
    ran, stopped = [], threading.Event()

    def work(number: int) -> None:
        ran.append(number)
        if number == 0:
            while len(ran) < 2:
                time.sleep(0.01)
            raise ExecutionError("found 3, expected 4")
        while not stop_requested():
            time.sleep(0.01)
        stopped.set()

    with pytest.raises(ExecutionError, match="found 3, expected 4"):
        list(run_inline(work, functions.tasks_of(*range(20)), on_event=quiet, max_tasks=2))
    assert sorted(ran) == [0, 1]
    assert stopped.is_set()


def test_an_error_of_another_kind_names_its_task() -> None:
    with pytest.raises(ExecutionError, match="t0: the task failed with ZeroDivisionError") as caught:
        list(run_inline(lambda _: 1 // 0, functions.tasks_of(0), on_event=quiet))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_closing_the_iteration_stops_what_runs() -> None:
    stopped = threading.Event()

    def work(number: int) -> int:
        while number and not stop_requested():
            time.sleep(0.01)
        if number:
            stopped.set()
        return number

    outcomes = run_inline(work, functions.tasks_of(0, 1), on_event=quiet, max_tasks=2)
    assert next(outcomes).result == 0
    outcomes.close()
    assert stopped.is_set()


def test_an_interrupt_ends_the_run_within_seconds_even_where_a_task_does_not_listen() -> None:
    released = threading.Event()
    threading.Timer(0.3, _thread.interrupt_main).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_inline(lambda _: released.wait(60), functions.tasks_of(0), on_event=quiet))
    released.set()
    assert time.monotonic() - started < 6


def test_nobody_asks_to_stop_outside_an_executor() -> None:
    assert not stop_requested()
