"""Running one shard task: read what its jobs need, merge, and stream one file that appears whole or not at all."""

from __future__ import annotations

import queue
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymerge.compute.operations import Operations, open_operations
from raymerge.errors import ExecutionError, Problem
from raymerge.merging.buffers import Account
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.peak import peak_bytes, reset_peak
from raymerge.merging.scan import Scanner, read_range, streamed_windows
from raymerge.merging.tensor import merge_held, merge_tensor
from raymerge.planning.header import shard_header
from raymerge.planning.jobs import COPY
from raymerge.planning.memory import BLOCK_ELEMENTS, held_bytes, is_held, needs_rows, room_bytes, window_elements
from raymerge.planning.nouns import ShardReceipt, ShardTask, TensorJob
from raymerge.storage import CopyRange, ObjectInfo, ObjectWriter, join_url, store_for

if TYPE_CHECKING:
    from typing_extensions import Self

# Readers beside the merging threads: enough that the next tensors arrive while these merge.
_READ_AHEAD_THREADS = 3
_CHECKSUM_CHUNK_BYTES = 8 << 20


def run_shard(
    task: ShardTask, options: ShardOptions, raise_if_stopped: Callable[[], None] = lambda: None
) -> ShardReceipt:
    """Make one output file, or leave nothing and raise StorageError or ExecutionError (results not finite).

    `raise_if_stopped` is called between tensors, in this thread.
    """
    reset_peak()
    started = time.monotonic()
    header = shard_header(task)
    url = join_url(options.out, task.file_name)
    with store_for(url).create(url, nbytes=len(header) + task.tensor_bytes) as writer:
        writer.write(header)
        with _Run(task=task, options=options, writer=writer, raise_if_stopped=raise_if_stopped) as run:
            nonfinite = run.write_tensors()
        written = writer.commit()
    return _receipt(task, written, nonfinite, started)


def checksum_shard(task: ShardTask, options: ShardOptions) -> ShardReceipt:
    """Read a finished output file for its checksum: what an interrupted run did not live to note."""
    started = time.monotonic()
    url = join_url(options.out, task.file_name)
    store = store_for(url)
    info = store.info(url)
    crc, buffer = 0, bytearray(min(_CHECKSUM_CHUNK_BYTES, info.nbytes))
    for offset in range(0, info.nbytes, _CHECKSUM_CHUNK_BYTES):
        view = memoryview(buffer)[: min(_CHECKSUM_CHUNK_BYTES, info.nbytes - offset)]
        store.read_into(url, view, offset=offset, version=info.version)
        crc = zlib.crc32(view, crc)
    found = ObjectInfo(url=url, nbytes=info.nbytes, version=info.version, crc32=crc)
    return _receipt(task, found, {}, started)


def _receipt(task: ShardTask, written: ObjectInfo, nonfinite: dict[str, int], started: float) -> ShardReceipt:
    if written.crc32 is None:
        raise ExecutionError(f"{task.file_name}: the store gave no checksum of what was written")
    return ShardReceipt(
        file_name=task.file_name,
        nbytes=written.nbytes,
        crc32=written.crc32,
        read_bytes=task.read_bytes,
        nonfinite=tuple(nonfinite.items()),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(),
    )


@dataclass(frozen=True, slots=True)
class _Merged:
    """A merged tensor in memory, waiting for its turn in the file."""

    job: TensorJob
    data: Any
    crc32: int
    nonfinite: int


class _Run:
    """The jobs of one shard: admitted in file order within the budget, merged on threads, written in order."""

    def __init__(
        self, *, task: ShardTask, options: ShardOptions, writer: ObjectWriter, raise_if_stopped: Callable[[], None]
    ) -> None:
        self._task = task
        self._options = options
        self._writer = writer
        self._raise_if_stopped = raise_if_stopped
        self._room = room_bytes(task.jobs, options.memory)
        self._account = Account(max(self._room, 0))
        self._block_elements = BLOCK_ELEMENTS
        self._operations: queue.SimpleQueue[Operations] = queue.SimpleQueue()
        self._failed = False
        threads = options.memory.threads
        for _ in range(threads):
            self._operations.put(open_operations(options.device))
        self._pool = ThreadPoolExecutor(threads + _READ_AHEAD_THREADS, thread_name_prefix="raymerge-merge")
        self._readers = ThreadPoolExecutor(_READ_AHEAD_THREADS, thread_name_prefix="raymerge-read")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._failed = True  # what is still queued has nobody to write it
        self._pool.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)

    def write_tensors(self) -> dict[str, int]:
        """Write every tensor in file order; returns the count of non-finite results by tensor."""
        waiting = deque(self._task.jobs)
        flying: deque[Future[_Merged]] = deque()
        nonfinite: dict[str, int] = {}
        while waiting or flying:
            self._raise_if_stopped()
            self._admit(waiting, flying)
            if flying:
                wait([future for future in flying if not future.done()], return_when=FIRST_COMPLETED)
                while flying and flying[0].done():
                    merged = flying.popleft().result()
                    self._writer.write(merged.data, crc32=merged.crc32)
                    self._account.give(merged.data)
                    self._note(merged.job, merged.nonfinite, nonfinite)
            elif waiting and waiting[0].method == COPY:
                self._copy(list(_leading_copies(waiting)))
            elif waiting:
                job = waiting.popleft()
                self._note(job, self._stream(job), nonfinite)
        return nonfinite

    def _admit(self, waiting: deque[TensorJob], flying: deque[Future[_Merged]]) -> None:
        """Start the next jobs as long as they are held in memory and fit beside those in flight."""
        while waiting and is_held(waiting[0], self._room):
            if not self._account.try_acquire(held_bytes(waiting[0])):
                return
            flying.append(self._pool.submit(self._hold, waiting.popleft()))

    def _hold(self, job: TensorJob) -> _Merged:
        """Read a job's inputs whole, and merge them."""
        raw = [self._account.take(ref.spec.nbytes) for ref in job.refs]
        data = self._account.take(job.output.nbytes)
        for ref, buffer in zip(job.refs, raw, strict=True):
            if self._failed:
                raise ExecutionError("stopped")
            read_range(ref, (0, ref.spec.element_count), buffer)
        operations = self._operations.get()
        try:
            nonfinite = merge_held(job, raw, data, operations, self._block_elements)
        finally:
            self._operations.put(operations)
        for buffer in raw:
            self._account.give(buffer)
        return _Merged(job, data, zlib.crc32(data), nonfinite)

    def _stream(self, job: TensorJob) -> int:
        """Merge a tensor too large to hold: windows arrive, merge and leave, as often as the method scans."""
        windows = {rows: window_elements(job, self._room, rows=rows) for rows in {False, needs_rows(job)}}
        most, window = max(windows.values()), windows[needs_rows(job)]
        sizes = [most * ref.spec.dtype.bits // 8 for ref in job.refs]
        width = job.output.dtype.bits // 8
        needed = 2 * sum(sizes) + most * width
        if not self._account.try_acquire(needed):
            raise AssertionError("a streamed tensor starts with nothing else in memory")
        buffers = [[self._account.take(size) for size in sizes] for _ in range(2)]
        out = self._account.take(most * width)
        operations = self._operations.get()
        end_of_written = 0

        def place(start: int, end: int) -> Any:
            nonlocal end_of_written
            if start - end_of_written >= window:  # the window is full: every element before `start` is in it
                self._writer.write(out[: (start - end_of_written) * width])
                end_of_written = start
            return out[(start - end_of_written) * width : (end - end_of_written) * width]

        try:
            scanner = Scanner(
                job,
                operations,
                self._block_elements,
                lambda rows: streamed_windows(job, windows[rows], self._readers, buffers),
            )
            nonfinite = merge_tensor(job, scanner, operations, place)
            self._writer.write(out[: (job.output.element_count - end_of_written) * width])
        finally:
            self._operations.put(operations)
        for buffer in (*buffers[0], *buffers[1], out):
            self._account.give(buffer)
        return nonfinite

    def _copy(self, jobs: list[TensorJob]) -> None:
        for copied in _ranges(jobs):
            self._writer.copy(copied)

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


def _leading_copies(waiting: deque[TensorJob]) -> Iterator[TensorJob]:
    while waiting and waiting[0].method == COPY:
        yield waiting.popleft()


def _ranges(jobs: list[TensorJob]) -> Iterator[CopyRange]:
    """The jobs' byte ranges, neighbours in one file joined."""
    joined: CopyRange | None = None
    for job in jobs:
        ref = job.inputs[0].ref
        if not ref.spec.nbytes:
            continue
        if joined is not None and joined.url == ref.file.url and joined.offset + joined.nbytes == ref.offset:
            joined = CopyRange(
                url=joined.url, offset=joined.offset, nbytes=joined.nbytes + ref.spec.nbytes, version=joined.version
            )
            continue
        if joined is not None:
            yield joined
        joined = CopyRange(url=ref.file.url, offset=ref.offset, nbytes=ref.spec.nbytes, version=ref.file.version)
    if joined is not None:
        yield joined
