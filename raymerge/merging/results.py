"""What a tensor is merged into: memory that waits for its turn in the file, or parts that are written as they fill."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from raymerge.merging.buffers import Account
from raymerge.merging.stopwatch import Stopwatch
from raymerge.merging.tensor import whole
from raymerge.planning.nouns import TensorJob
from raymerge.storage import ObjectWriter
from raymerge.storage.crc32 import crc32, crc32_combine

Bytes = Any  # a 1-D uint8 numpy array

# The disk begins at once, and the same few buffers are filled again and again. With parts of 2 MiB a slerp of two 1.1B
# models took 4% longer; larger ones hold more memory.
PART_BYTES = 4 << 20
_LEAST_PART_BYTES = 1 << 20  # smaller tensors are cheaper written together, in their turn
_PARTS = 3  # of a tensor that may be on their way to the disk, beside the one that fills


@dataclass(slots=True)
class Merged:
    """Bytes that wait for their turn in the file: a merged tensor, or a chunk that is moved as it is.

    Of a tensor written in parts, `data` is what lies before the first whole block of the file and `rest` what lies
    behind the last; the `early_bytes` between them, whose checksum `crc32` then is, are in the file once the futures of
    `writing` are done, and their buffers are free.
    """

    data: Any
    job: TensorJob | None = None
    crc32: int | None = None
    nonfinite: int = 0
    early_bytes: int = 0
    rest: bytes = b""
    writing: Sequence[tuple[Future[None], Bytes]] = ()


class Result(Protocol):
    """Where one tensor's merged elements go, in order."""

    def place(self, start: int, end: int) -> Bytes:
        """The bytes that elements [start, end) are to be written to; all before them are there."""

    def finish(self, nonfinite: int) -> Merged:
        """What is to be written once all elements are there."""


def open_result(job: TensorJob, account: Account, writer: ObjectWriter, position: int, watch: Stopwatch) -> Result:
    """Where a tensor is merged to that begins at `position` of the file; the bytes of its output must be acquired.

    Of what `watch` counts as computing, waiting for the disk is writing.
    """
    if writer.early_block and job.output.nbytes >= _LEAST_PART_BYTES:
        return _Parts(job, account, writer, position, watch)
    return _Whole(job, account)


class _Whole:
    """The whole tensor in memory."""

    def __init__(self, job: TensorJob, account: Account) -> None:
        self._job = job
        self._data = account.take(job.output.nbytes)
        self._place = whole(job, self._data)

    def place(self, start: int, end: int) -> Bytes:
        return self._place(start, end)

    def finish(self, nonfinite: int) -> Merged:
        return Merged(self._data, self._job, crc32(self._data), nonfinite)


class _Parts:
    """Whole blocks of the file, which are written as soon as there are enough; both ends are kept for their turn.

    All places are the file's. Buffers begin at a block's, so that what they hold lies on blocks where the file's does.
    """

    def __init__(self, job: TensorJob, account: Account, writer: ObjectWriter, position: int, watch: Stopwatch) -> None:
        self._job = job
        self._account = account
        self._writer = writer
        self._watch = watch
        self._block = writer.early_block
        self._width = job.output.dtype.bits // 8
        self._position = position
        self._start = position // self._block * self._block  # of the buffer
        self._end = position  # of what was placed
        self._buffer: Bytes = None
        self._head = b""
        self._crc32 = self._early_bytes = 0
        self._writing: deque[tuple[Future[None], Bytes]] = deque()

    def place(self, start: int, end: int) -> Bytes:
        first, last = self._position + start * self._width, self._position + end * self._width
        if self._buffer is None:
            self._buffer = self._take(last - self._start)
        elif last - self._start > len(self._buffer):
            rest = self._send()
            self._buffer = self._take(last - self._start)
            self._buffer[: len(rest)] = rest
        self._end = last
        return self._buffer[first - self._start : last - self._start]

    def finish(self, nonfinite: int) -> Merged:
        rest = self._send().tobytes()
        self._account.release(self._job.output.nbytes - self._writing_bytes)
        return Merged(self._head, self._job, self._crc32, nonfinite, self._early_bytes, rest, self._writing)

    @property
    def _writing_bytes(self) -> int:
        return sum(len(buffer) for _, buffer in self._writing)

    def _take(self, needed: int) -> Bytes:
        """A buffer of one part, or for what is needed if that is more; waits where all would be larger than the tensor.

        A single one may be, by the blocks that begin before the tensor and end behind it.
        """
        nbytes = self._job.output.nbytes
        part = min(PART_BYTES, max(_LEAST_PART_BYTES, 1 << (nbytes // (_PARTS + 1)).bit_length() - 1))
        sizes = part, part + self._block  # few, so that they are used again
        size = next((size for size in sizes if needed <= size), needed)
        while self._writing and (len(self._writing) >= _PARTS or self._writing_bytes + size > nbytes):
            written, buffer = self._writing.popleft()
            with self._watch.timing("write", within="compute"):
                written.result()
            self._account.put_back(buffer)
        return self._account.take(size, is_lasting=True)

    def _send(self) -> Bytes:
        """Have the whole blocks in the buffer written; returns what is left of it."""
        buffer, filled = self._buffer, self._end - self._start
        lead = max(0, self._position - self._start)  # before the tensor, in the block that it begins in
        first, last = self._block if lead else 0, filled // self._block * self._block
        rest = buffer[last:filled].copy()
        if lead:
            self._head = buffer[lead:first].tobytes()
        part = buffer[first:last]
        self._crc32 = crc32_combine(self._crc32, crc32(part), len(part))
        self._early_bytes += len(part)
        self._writing.append((self._writer.write_early(part, self._start + first), buffer))
        self._start += last
        return rest
