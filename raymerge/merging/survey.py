"""One task of a first phase: look at the tensors of a shard's jobs, and write nothing."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from raymerge.compute.operations import Operations, open_operations
from raymerge.errors import ExecutionError
from raymerge.merging.buffers import Account
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.scan import Scanner, held_windows, own_buffers, read_held, streamed_windows, window_sizes
from raymerge.merging.tensor import observe_tensor
from raymerge.methods.survey import Answer, Question
from raymerge.planning.memory import (
    BLOCK_ELEMENTS,
    read_held_bytes,
    room_bytes,
    side_bytes,
    step_bytes,
    window_elements,
)
from raymerge.planning.nouns import TensorJob
from raymerge.planning.phases import SurveyReceipt, SurveyTask

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

# As for merging: enough that the next tensors arrive while these are looked at.
_READ_AHEAD_THREADS = 3


def survey_shard(
    task: SurveyTask, question: Question, options: ShardOptions, raise_if_stopped: Callable[[], None] = lambda: None
) -> SurveyReceipt:
    """Ask a question of every job's tensor. `raise_if_stopped` is called between tensors, in this thread."""
    import numpy as np

    arrays: list[NDArray[Any]] = []
    with _Run(task, question, options, raise_if_stopped) as run:
        for array in run.observations():
            if question.each_tensor or not arrays:
                arrays.append(array)
            else:
                arrays[0] += array
    answer = Answer.of(np.stack(arrays) if question.each_tensor else arrays[0])
    return SurveyReceipt(position=task.position, answer=answer, read_bytes=sum(job.read_bytes for job in task.jobs))


class _Run:
    """The jobs of one task: read within the budget, looked at on threads, answered in order."""

    def __init__(
        self, task: SurveyTask, question: Question, options: ShardOptions, raise_if_stopped: Callable[[], None]
    ) -> None:
        self._jobs = task.jobs
        self._question = question
        self._raise_if_stopped = raise_if_stopped
        self._room = max(0, room_bytes(task.jobs, options.memory))
        self._account = Account(self._room)
        self._operations: queue.SimpleQueue[Operations] = queue.SimpleQueue()
        self._failed = False
        threads = options.memory.threads
        for _ in range(threads):
            self._operations.put(open_operations(options.device))
        self._pool = ThreadPoolExecutor(threads + _READ_AHEAD_THREADS, thread_name_prefix="raymerge-survey")
        self._readers = ThreadPoolExecutor(_READ_AHEAD_THREADS, thread_name_prefix="raymerge-read")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._failed = True
        self._pool.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        self._account.close()

    def observations(self) -> Iterator[NDArray[Any]]:
        """The array of every job, in order."""
        waiting = deque(self._jobs)
        flying: deque[Future[NDArray[Any]]] = deque()
        while waiting or flying:
            self._raise_if_stopped()
            while waiting and read_held_bytes(waiting[0]) <= self._room:
                if not self._account.try_acquire(read_held_bytes(waiting[0])):
                    break
                flying.append(self._pool.submit(self._hold, waiting.popleft()))
            if flying:
                wait([future for future in flying if not future.done()], return_when=FIRST_COMPLETED)
                while flying and flying[0].done():
                    yield flying.popleft().result()
            elif waiting:
                yield self._stream(waiting.popleft())

    def _hold(self, job: TensorJob) -> NDArray[Any]:
        """Read a job's inputs whole, and look at them."""
        if side_bytes(job) + step_bytes(job):
            self._account.make_room()
        raw = read_held(job, self._account.take, self._check)
        found = self._look(job, lambda *_: held_windows(job, raw))
        self._account.release(side_bytes(job) + step_bytes(job))
        for buffer in own_buffers(job, raw):
            self._account.give(buffer)
        return found

    def _check(self) -> None:
        if self._failed:
            raise ExecutionError("stopped")

    def _stream(self, job: TensorJob) -> NDArray[Any]:
        """Look at a tensor too large to hold, window by window."""
        window = window_elements(job, self._room, rows=False)
        sizes = window_sizes(job, window)
        if not self._account.try_acquire(2 * sum(sizes) + side_bytes(job) + step_bytes(job)):
            raise AssertionError("a streamed tensor starts with nothing else in memory")
        self._account.make_room()
        buffers = [[self._account.take(size) for size in sizes] for _ in range(2)]
        found = self._look(job, lambda *_: streamed_windows(job, window, self._readers, buffers))
        self._account.release(side_bytes(job) + step_bytes(job))
        for buffer in (*buffers[0], *buffers[1]):
            self._account.give(buffer)
        return found

    def _look(self, job: TensorJob, windows: Callable[..., Any]) -> NDArray[Any]:
        operations = self._operations.get()
        try:
            scanner = Scanner(job, operations, BLOCK_ELEMENTS, windows)
            found: NDArray[Any] = observe_tensor(job, scanner, operations, self._question.details)
            return found
        finally:
            self._operations.put(operations)
