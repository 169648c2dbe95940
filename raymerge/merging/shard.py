"""Running one shard task: read what its jobs need, merge, and stream one file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from raymerge.compute.operations import Operations, open_operations
from raymerge.errors import ExecutionError, Problem
from raymerge.merging.buffers import Account, drop_idle_buffers, return_freed_memory
from raymerge.merging.held import Held
from raymerge.merging.input_steps import open_steps
from raymerge.merging.lending import LentWindows, lend_windows
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.peak import reset_peak
from raymerge.merging.receipts import receipt, with_checksum
from raymerge.merging.results import Merged, Result, open_result
from raymerge.merging.scan import Scanner, range_reads, streamed_windows, window_sizes
from raymerge.merging.schedule import Batch, Chunk, Copy, EarlyStart, Run, Step, Stream, early_start, schedule
from raymerge.merging.stopwatch import Stopwatch, TimedReaders
from raymerge.merging.tensor import merge_held, merge_tensor
from raymerge.planning.copies import is_copied
from raymerge.planning.header import shard_header
from raymerge.planning.jobs import COPY
from raymerge.planning.memory import (
    BLOCK_ELEMENTS,
    MOVED_BYTES,
    needs_rows,
    room_bytes,
    side_bytes,
    state_bytes,
    step_bytes,
    window_elements,
)
from raymerge.planning.nouns import ShardReceipt, ShardTask, TensorJob
from raymerge.storage import CopyRange, ObjectWriter, is_local, join_url, store_for

if TYPE_CHECKING:
    from typing_extensions import Self

# What lies in memory ready or nearly so, beyond what is being merged, when everything is on a disk: enough that nobody
# waits while a tensor is written, and no more, since a fresh page costs more than the bytes that are copied to it.
_ENOUGH_AHEAD_BYTES = 64 << 20
_ENOUGH_AHEAD = 2  # tensors
# Where all inputs of a tensor are lent, and larger than this together, only windows of them are brought in, which take
# half as much at most. It costs little (0.06 s per GB and pass), and leaves memory to the tensors beside it.
_LENT_WHOLE_BYTES = 128 << 20

# Readers beside the merging threads: enough that the next tensors arrive while these merge. From a disk that is a
# matter of copying; an object store takes 20 to 200 ms for an answer and gives one connection some 100 MB/s.
_DISK_READERS = 3
_STORE_READERS = 16


def run_shard(
    task: ShardTask, options: ShardOptions, raise_if_stopped: Callable[[], None] = lambda: None
) -> ShardReceipt:
    """Make one output file, or leave nothing and raise StorageError or ExecutionError (results not finite).

    `raise_if_stopped` is called between tensors, in this thread.
    """
    drop_idle_buffers(beyond_bytes=max(0, room_bytes(task.jobs, options.memory)))
    return_freed_memory(state_bytes(task.jobs))
    reset_peak()
    started = time.monotonic()
    header = shard_header(task)
    url = join_url(options.out, task.file_name)
    with store_for(url).create(url, nbytes=len(header) + task.tensor_bytes) as writer:
        writer.write(header)
        with _Run(task, options, writer, start=len(header), raise_if_stopped=raise_if_stopped) as run:
            nonfinite = run.write_tensors()
        with run.watch.timing("write"):
            writer.settle(raise_if_stopped)
            written = writer.commit()
    return replace(receipt(task, with_checksum(written), nonfinite, started), phase_seconds=run.watch.seconds())


class _Run:
    """The steps of one shard: admitted in file order within the budget, read and merged on threads, written in order.

    Reads begin as soon as there is room for them, so that the next tensors arrive while others merge. Where the writer
    can, large tensors are written while they merge, whosever turn it is; `start` is where the first one begins in the
    file.
    """

    def __init__(
        self,
        task: ShardTask,
        options: ShardOptions,
        writer: ObjectWriter,
        *,
        start: int,
        raise_if_stopped: Callable[[], None],
    ) -> None:
        self._task = task
        starts = accumulate((job.output.nbytes for job in task.jobs), initial=start)
        self._starts = {job.output.name: begin for job, begin in zip(task.jobs, starts, strict=False)}
        self._options = options
        self._writer = writer
        self._raise_if_stopped = raise_if_stopped
        self._room = room_bytes(task.jobs, options.memory)
        self._account = Account(max(self._room, 0))
        self._moving_bytes = 0
        self._early: EarlyStart | None = None
        self._begun: dict[int, list[Future[Merged]]] = {}  # by the identity of steps that wait for their turn
        self._lent: dict[int, LentWindows | None] = {}  # of the steps that wait for room
        self._block_elements = BLOCK_ELEMENTS
        self._operations: queue.SimpleQueue[Operations] = queue.SimpleQueue()
        self._failed = False
        threads = options.memory.threads
        if any(job.method != COPY for job in task.jobs):
            for _ in range(threads):
                self._operations.put(open_operations(options.device))
        self._near = near = all(is_local(file.url) for job in task.jobs for ref in job.reads for file in ref.files)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="raymerge-merge")
        self.watch = Stopwatch()
        self._readers = TimedReaders(_DISK_READERS if near else _STORE_READERS, self.watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._failed = True  # what is still queued has nobody to write it
        self._readers.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._account.close()

    def write_tensors(self) -> dict[str, int]:
        """Write every tensor in file order; returns the count of non-finite results by tensor."""
        store = store_for(self._options.out)
        waiting = deque(schedule(self._task.jobs, self._room, lambda job: is_copied(job, store)))
        if self._near:  # from a store the bytes decide how long a tensor takes, and they arrive in file order
            self._early = early_start(waiting, self._options.memory.threads)
        flying: deque[Future[Merged] | Copy] = deque()
        nonfinite: dict[str, int] = {}
        while waiting or flying:
            self._raise_if_stopped()
            self._admit(waiting, flying)
            if flying:
                self._write(flying, nonfinite)
                continue
            step = waiting.popleft()
            assert isinstance(step, Stream), "whatever else comes first is admitted when nothing is in memory"
            self._note(step.job, self._stream(step.job), nonfinite)
        return nonfinite

    def _admit(self, waiting: deque[Step], flying: deque[Future[Merged] | Copy]) -> None:
        """Start the next steps as long as they fit beside those in flight; a stream waits until all of these are."""
        while waiting:
            self._begin_early(waiting)
            step = waiting[0]
            if id(step) in self._begun:
                flying.extend(self._begun.pop(id(step)))
            elif isinstance(step, Copy):
                flying.append(step)
            elif isinstance(step, Chunk) and self._takes_chunk(step.source.nbytes):
                flying.append(self._readers.submit(self._move, step.source))
            elif isinstance(step, Batch) and self._wants_more(flying) and (begun := self._begin(step)):
                flying.extend(begun)
            else:
                return
            waiting.popleft()

    def _takes_chunk(self, nbytes: int) -> bool:
        if self._moving_bytes + nbytes > MOVED_BYTES or not self._account.try_acquire(nbytes):
            return False
        self._moving_bytes += nbytes
        return True

    def _begin_early(self, waiting: Sequence[Step]) -> None:
        """Start what would otherwise be merged alone at the end, once there is room for it and for all before it."""
        early = self._early
        if early is None or len(waiting) > early.left:
            return
        before = [step for step in takewhile(lambda step: step is not early.batch, waiting) if isinstance(step, Batch)]
        begun = self._begin(early.batch, max(step.held_bytes for step in before)) if before else []
        if begun:
            self._begun[id(early.batch)] = begun
        if begun or not before:
            self._early = None

    def _wants_more(self, flying: Sequence[Future[Merged] | Copy]) -> bool:
        if not self._near or self._account.in_use_bytes() <= _ENOUGH_AHEAD_BYTES:
            return True
        unmerged = sum(isinstance(each, Future) and not each.done() for each in flying)
        return unmerged <= self._options.memory.threads + _ENOUGH_AHEAD

    def _begin(self, batch: Batch, beside_bytes: int = 0) -> list[Future[Merged]]:
        """Start a batch if there is room for it, and would be for `beside_bytes`; else nothing."""
        windows = self._lent_windows(batch)
        needed = batch.held_bytes if windows is None else windows.nbytes + windows.job.output.nbytes
        if (beside_bytes and needed + beside_bytes > self._room) or not self._account.try_acquire(needed):
            return []
        self._lent.pop(id(batch), None)
        if windows is None:
            return self._begin_held(batch)
        self._account.take_elsewhere(windows.nbytes)
        return [self._pool.submit(self._merge_windows, windows)]

    def _lent_windows(self, batch: Batch) -> LentWindows | None:
        """What is lent of a batch whose one tensor is large, if all of it is."""
        if id(batch) not in self._lent:
            is_large = self._near and len(batch.jobs) == 1 and batch.read_bytes > _LENT_WHOLE_BYTES
            self._lent[id(batch)] = lend_windows(batch.jobs[0], _LENT_WHOLE_BYTES) if is_large else None
        return self._lent[id(batch)]

    def _begin_held(self, batch: Batch) -> list[Future[Merged]]:
        """Start reading what a batch needs; each of its jobs merges when it is its turn and all of that is there."""
        held = Held(batch)
        for position, run in enumerate(batch.runs):
            held.arriving += [self._readers.submit(read) for read in self._reads(run, held, position)]
        return [self._pool.submit(self._merge, job, held) for job in batch.jobs]

    def _reads(self, run: Run, held: Held, position: int) -> list[Callable[[], None]]:
        if run.gathered is None:
            return [partial(self._fetch, run, held, position)]
        buffer = held.buffers[position] = self._account.take(run.nbytes)
        return range_reads(run.gathered, (0, run.gathered.spec.element_count), buffer)

    def _fetch(self, run: Run, held: Held, position: int) -> None:
        """Let a batch have the bytes of a run: where they lie, or in a buffer."""
        url, version = run.file.url, run.file.version
        lent = store_for(url).lend(url, offset=run.offset, nbytes=run.nbytes, version=version)
        if lent is not None:
            self._account.take_elsewhere(run.nbytes)
            lent.load(0, run.nbytes)
            held.lent[position], held.buffers[position] = lent, np.frombuffer(lent.data, np.uint8)
            return
        buffer = held.buffers[position] = self._account.take(run.nbytes)
        self._read(url, buffer, run.offset, version)

    def _read(self, url: str, buffer: Any, offset: int, version: str) -> None:
        if self._failed:
            raise ExecutionError("stopped")
        if len(buffer):
            store_for(url).read_into(url, buffer, offset=offset, version=version)

    def _move(self, source: CopyRange) -> Merged:
        data = self._account.take(source.nbytes)
        self._read(source.url, data, source.offset, source.version)
        return Merged(data)

    def _merge(self, job: TensorJob, held: Held) -> Merged:
        held.wait()
        if self._failed:
            raise ExecutionError("stopped")
        result = self._open_result(job)
        raw = [held.raw(ref) for ref in job.refs]
        if step_bytes(job):
            self._account.make_room()
        steps = open_steps(job.refs, held.raw)
        with self._computing() as operations:
            nonfinite = merge_held(job, raw, result.place, operations, self._block_elements, steps=steps)
            merged = result.finish(nonfinite)
        held.confirm()
        del raw, steps
        self._account.release(step_bytes(job))
        if held.is_spent():
            held.give_back(self._account)
        return merged

    def _merge_windows(self, windows: LentWindows) -> Merged:
        if self._failed:
            raise ExecutionError("stopped")
        job = windows.job
        result = self._open_result(job)
        with self._computing() as operations:
            scanner = Scanner(job, operations, self._block_elements, windows.scan)
            merged = result.finish(merge_tensor(job, scanner, operations, result.place))
        windows.confirm()
        self._account.give_elsewhere(windows.nbytes)
        return merged

    def _open_result(self, job: TensorJob) -> Result:
        return open_result(job, self._account, self._writer, self._starts[job.output.name], self.watch)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[Operations]:
        """Operations that no other thread uses meanwhile; the time counts as computing."""
        operations = self._operations.get()
        try:
            with self.watch.timing("compute"):
                yield operations
        finally:
            self._operations.put(operations)

    def _write(self, flying: deque[Future[Merged] | Copy], nonfinite: dict[str, int]) -> None:
        """Wait for something to be done and write it if it may be: one tensor, so that others begin meanwhile."""
        first = flying[0]
        if isinstance(first, Copy):
            for each in first.ranges:
                self._writer.copy(each)
            flying.popleft()
            return
        if not first.done() and not self._settle_early(flying):
            wait([each for each in flying if isinstance(each, Future) and not each.done()], return_when=FIRST_COMPLETED)
        if first.done():
            flying.popleft()
            self._write_merged(first.result(), nonfinite)

    def _settle_early(self, flying: Iterable[Future[Merged] | Copy]) -> bool:
        """Wait until one tensor that has been merged before its turn is written, so that its memory is free."""
        for each in flying:
            if isinstance(each, Future) and each.done() and each.result().writing:
                self._settle(each.result())
                return True
        return False

    def _settle(self, merged: Merged) -> None:
        with self.watch.timing("write"):
            for written, buffer in merged.writing:
                written.result()
                self._account.give(buffer)
        merged.writing = ()

    def _write_merged(self, merged: Merged, nonfinite: dict[str, int]) -> None:
        self._settle(merged)
        with self.watch.timing("write"):
            if merged.early_bytes:
                assert merged.crc32 is not None
                self._writer.write(merged.data)
                self._writer.pass_over(merged.early_bytes, crc32=merged.crc32)
                self._writer.write(merged.rest)
            else:
                self._writer.write(merged.data, crc32=merged.crc32)
                self._account.give(merged.data)
        if merged.job is None:
            self._moving_bytes -= len(merged.data)
        else:
            self._note(merged.job, merged.nonfinite, nonfinite)

    def _stream(self, job: TensorJob) -> int:
        """Merge a tensor too large to hold: windows arrive, merge and leave, as often as the method scans."""
        windows = {rows: window_elements(job, self._room, rows=rows) for rows in {False, needs_rows(job)}}
        most, window = max(windows.values()), windows[needs_rows(job)]
        sizes = window_sizes(job, most)
        width = job.output.dtype.bits // 8
        beside = side_bytes(job) + step_bytes(job)
        needed = 2 * sum(sizes) + most * width + beside
        if not self._account.try_acquire(needed):
            raise AssertionError("a streamed tensor starts with nothing else in memory")
        self._account.make_room()
        buffers = [[self._account.take(size) for size in sizes] for _ in range(2)]
        out = self._account.take(most * width)
        end_of_written = 0

        def place(start: int, end: int) -> Any:
            nonlocal end_of_written
            if start - end_of_written >= window:  # the window is full: every element before `start` is in it
                self._writer.write(out[: (start - end_of_written) * width])
                end_of_written = start
            return out[(start - end_of_written) * width : (end - end_of_written) * width]

        with self._computing() as operations:  # waiting for its windows and writing them are not told apart
            scanner = Scanner(
                job,
                operations,
                self._block_elements,
                lambda rows: streamed_windows(job, windows[rows], self._readers, buffers),
            )
            nonfinite = merge_tensor(job, scanner, operations, place)
        self._writer.write(out[: (job.output.element_count - end_of_written) * width])
        self._account.release(beside)
        for buffer in (*buffers[0], *buffers[1], out):
            self._account.give(buffer)
        return nonfinite

    def _note(self, job: TensorJob, count: int, nonfinite: dict[str, int]) -> None:
        if not count:
            return
        nonfinite[job.output.name] = count
        if self._options.fail_on_nonfinite:
            raise ExecutionError(
                Problem(
                    subject=f"{job.output.name} in {self._task.file_name}",
                    message=f"{count} of {job.output.element_count} results are not finite",
                    remedy="check the inputs (raymerge verify MODEL --full), or go on with --nan warn",
                )
            )
