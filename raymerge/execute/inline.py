"""Run tasks in this process, with threads and without Ray."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic

from raymerge.errors import ExecutionError, Problem, RaymergeError, TransientStorageError
from raymerge.events import Event, TaskFinished, TaskRetried, TaskStarted
from raymerge.execute.task import (
    RETRY_WAIT_SECONDS,
    STORAGE_RETRIES,
    Measure,
    Outcome,
    P,
    R,
    StoppedError,
    Task,
    jittered_seconds,
    measure_nothing,
    stoppable_by,
)

# How long an interrupt waits for running functions to notice; they ask between tensors.
INTERRUPT_SECONDS = 3.0
_POLL_SECONDS = 0.5


def run_inline(
    function: Callable[[P], R],
    tasks: Sequence[Task[P]],
    *,
    on_event: Callable[[Event], None],
    max_tasks: int = 1,
    measure: Measure[R] = measure_nothing,
    retry_wait_seconds: float = RETRY_WAIT_SECONDS,
) -> Iterator[Outcome[R]]:
    """Yield one outcome per task, in the order in which they end, at most `max_tasks` running at a time.

    A `TransientStorageError` is tried again a few times after a jittered rest. Any other error starts nothing more,
    waits for what runs (functions may ask `stop_requested()`) and is raised: a `RaymergeError` as it is, others as an
    `ExecutionError`. Events are emitted from the thread that iterates. `memory_bytes` is left to the caller's
    `max_tasks`.
    """
    run = _Run(function, tasks, on_event=on_event, measure=measure, retry_wait_seconds=retry_wait_seconds)
    patience: float | None = INTERRUPT_SECONDS
    try:
        run.start(max_tasks)
        yield from run.outcomes()
    except Exception:
        patience = None
        raise
    finally:
        run.stop(patience)


class _Run(Generic[P, R]):
    """The threads of one run and the queue on which they report to the iterating thread."""

    def __init__(
        self,
        function: Callable[[P], R],
        tasks: Sequence[Task[P]],
        *,
        on_event: Callable[[Event], None],
        measure: Measure[R],
        retry_wait_seconds: float,
    ) -> None:
        self._function = function
        self._task_count = len(tasks)
        self._todo: queue.SimpleQueue[Task[P]] = queue.SimpleQueue()
        for task in tasks:
            self._todo.put(task)
        self._reports: queue.SimpleQueue[Event | Outcome[R] | BaseException] = queue.SimpleQueue()
        self._on_event = on_event
        self._measure = measure
        self._retry_wait_seconds = retry_wait_seconds
        self._cancelled = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, max_tasks: int) -> None:
        for index in range(min(max_tasks, self._task_count)):
            # Daemons, so that an interrupt ends the process even while a function is deep in one tensor.
            thread = threading.Thread(target=self._work, name=f"raymerge-task-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def outcomes(self) -> Iterator[Outcome[R]]:
        remaining = self._task_count
        while remaining:
            report = self._next_report()
            if isinstance(report, BaseException):
                raise report
            if isinstance(report, Outcome):
                remaining -= 1
                measured = self._measure(report.result)
                self._on_event(TaskFinished(task=report.name, seconds=report.seconds, **measured._asdict()))
                yield report
            else:
                self._on_event(report)

    def _next_report(self) -> Event | Outcome[R] | BaseException:
        while True:
            # Waiting in steps lets an interrupt in that reaches Python without a signal, as notebooks send it.
            with contextlib.suppress(queue.Empty):
                return self._reports.get(timeout=_POLL_SECONDS)

    def stop(self, patience_seconds: float | None) -> None:
        """Start nothing more and wait for what runs: `patience_seconds` altogether, None without bound."""
        self._cancelled.set()
        deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        with stoppable_by(self._cancelled.is_set):
            while not self._cancelled.is_set():
                try:
                    task = self._todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._reports.put(self._attempts(task))
                except BaseException as error:  # noqa: BLE001 - whatever it is, the iterating thread raises it
                    self._reports.put(_as_raised(task.name, error))
                    return

    def _attempts(self, task: Task[P]) -> Outcome[R]:
        self._reports.put(TaskStarted(task=task.name))
        started = time.monotonic()
        for attempt in itertools.count(1):
            try:
                result = self._function(task.payload)
                break
            except TransientStorageError as error:
                if attempt > STORAGE_RETRIES:
                    raise
                self._rest(task, attempt, error)
        return Outcome(name=task.name, result=result, seconds=time.monotonic() - started)

    def _rest(self, task: Task[P], attempt: int, error: TransientStorageError) -> None:
        wait_seconds = jittered_seconds(attempt, self._retry_wait_seconds)
        self._reports.put(
            TaskRetried(
                task=task.name,
                cause="storage",
                detail=str(error),
                attempt=attempt,
                limit=STORAGE_RETRIES,
                wait_seconds=wait_seconds,
            )
        )
        if self._cancelled.wait(wait_seconds):
            raise StoppedError from error


def _as_raised(task_name: str, error: BaseException) -> BaseException:
    if isinstance(error, RaymergeError) or not isinstance(error, Exception):
        return error
    failure = ExecutionError(
        Problem(subject=task_name, message=f"the task failed with {type(error).__name__}: {error}")
    )
    failure.__cause__ = error
    return failure
