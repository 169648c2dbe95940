"""Blocks of one output tensor's inputs: from memory where they fit, else streamed from storage window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raymerge.checkpoint.nouns import TensorRef
from raymerge.compute.operations import Operations
from raymerge.dtypes import DType
from raymerge.merging.gathering import Piece, pieces
from raymerge.merging.input_steps import OpenedSteps, open_steps
from raymerge.methods import method as find_method
from raymerge.methods.inputs import Block
from raymerge.planning.memory import block_elements
from raymerge.planning.nouns import TensorJob
from raymerge.storage import store_for

# Elements of a sample: the first ones of every so many. Where a page is touched first, reaching it costs more than
# what is read there, so a sample takes long stretches of few pages: 512 bytes in every fourth. Steps are no multiple of
# usual row lengths, so that stretches begin at different columns.
SAMPLE_TAKE, SAMPLE_STEP = 256, 33 * 256
# How much longer blocks are where nothing is decoded: a call from Python costs as much as a light kernel takes for a
# block. In the room of what is not decoded; or, of a method that works in place, as far as calls no longer count.
_STORED_BLOCKS, _IN_PLACE_BLOCKS = 2, 8

Bytes = Any  # a 1-D uint8 numpy array
Range = tuple[int, int]  # elements [start, end)
_CONCURRENT_READS = 16
LoadWindow = Callable[[Range], Sequence[Bytes]]


def read_range(ref: TensorRef, elements: Range, buffer: Bytes) -> None:
    """Fill `buffer` with what holds elements [start, end) of a tensor: the bytes of `ref.span`, or gathered rows."""
    for read in range_reads(ref, elements, buffer):
        read()


def range_reads(ref: TensorRef, elements: Range, buffer: Bytes) -> list[Callable[[], None]]:
    """What `read_range` does, in parts that may run side by side; a few, however many rows lie apart."""
    if ref.gather is None:
        return [partial(_read_span, ref, elements, buffer)]
    found = pieces(ref, elements)
    each = -(-len(found) // _CONCURRENT_READS) or 1
    return [partial(_read_pieces, found[start : start + each], buffer) for start in range(0, len(found), each)]


def _read_pieces(found: Sequence[Piece], buffer: Bytes) -> None:
    for piece in found:
        piece.read(buffer)


def _read_span(ref: TensorRef, elements: Range, buffer: Bytes) -> None:
    start, _ = ref.span(*elements)
    store_for(ref.file.url).read_into(ref.file.url, buffer, offset=ref.offset + start, version=ref.file.version)


def read_held(job: TensorJob, take: Callable[[int], Bytes], check: Callable[[], None] = lambda: None) -> list[Bytes]:
    """The stored bytes of every ref, whole, in buffers that `take` gives; refs in the same bytes have one buffer.

    `check` is called before each read and may raise.
    """
    raw: list[Bytes] = []
    for i, (ref, place) in enumerate(zip(job.refs, job.shared, strict=True)):
        check()
        raw.append(raw[place] if place < i else take(ref.nbytes))
        if place == i:
            read_range(ref, (0, ref.spec.element_count), raw[i])
    return raw


def own_buffers(job: TensorJob, raw: Sequence[Bytes]) -> Iterator[Bytes]:
    """Every buffer that refs have, once."""
    return (buffer for i, buffer in enumerate(raw) if job.shared[i] == i)


def cut(count: int, unit: int) -> Iterator[Range]:
    for start in range(0, count, unit):
        yield start, min(start + unit, count)


@dataclass(slots=True)
class Scanner:
    """Decodes windows into blocks.

    `windows(rows)` yields (elements, raw bytes of every ref) in element order, with `rows` windows of whole rows.
    `steps` are those of the refs, opened; where not given, they are opened at the first block. Blocks hold what the
    operations take most easily; for a formula from outside, which may compute with them, floats.
    """

    job: TensorJob
    operations: Operations
    block_elements: int
    windows: Callable[[bool], Iterator[tuple[Range, Sequence[Bytes]]]]
    steps: Sequence[OpenedSteps | None] = ()
    is_wide: bool = field(init=False)
    lends: bool = field(init=False)  # whether blocks may hold, and results go to, elements as they are stored
    _refs: Sequence[TensorRef] = field(init=False)
    _scratch: dict[int, Any] = field(default_factory=dict)
    _samples: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._refs = self.job.refs
        self.is_wide = any(ref.spec.dtype is DType.F64 for ref in self._refs)
        self.lends = not self.is_wide and not self.job.method_sha256  # a formula from outside may compute with them

    def scan(self, rows: bool) -> Iterator[Block]:
        """One pass in element order, in longer blocks where nothing is decoded; see `Inputs.scan`."""
        unit = block_elements(self.job.output.shape, rows=rows, target=self.block_elements)
        for (start, end), raw in self.windows(rows):
            longer = self._stored_blocks(rows) if self._takes_as_stored(raw) else 1
            for first, last in cut(end - start, longer * unit):
                yield self._block((start, end), first, last, raw)

    def _stored_blocks(self, rows: bool) -> int:
        """How much longer blocks are where nothing is decoded."""
        if find_method(self.job.method).in_place and self.operations.view(b"", self.job.output.dtype) is not None:
            return _IN_PLACE_BLOCKS
        return 1 if rows else _STORED_BLOCKS

    def scan_to_count(self, sample: bool) -> Iterator[Block]:
        """One pass in large blocks where nothing is decoded, which would take room; see `Inputs.scan_to_count`.

        A sample is the first SAMPLE_TAKE of every SAMPLE_STEP elements of each window.
        """
        for window, raw in self.windows(False):
            is_light = not self._has_steps if sample else self._takes_as_stored(raw)
            unit = self.block_elements * (SAMPLE_STEP // SAMPLE_TAKE if is_light else 1)
            for first, last in cut(window[1] - window[0], unit):
                yield self._block(window, first, last, raw, sampled=sample)

    @property
    def _has_steps(self) -> bool:
        return any(ref.steps for ref in self._refs)

    def _takes_as_stored(self, raw: Sequence[Bytes]) -> bool:
        """Whether the operations take all of the stored elements as they lie."""
        if not self.lends or self._has_steps:
            return False
        found = (self.operations.view(data, ref.spec.dtype) for ref, data in zip(self._refs, raw, strict=True))
        return all(each is not None for each in found)

    def _block(self, window: Range, first: int, last: int, raw: Sequence[Bytes], *, sampled: bool = False) -> Block:
        count = _sampled_count(last - first) if sampled else last - first
        arrays = []
        self.steps = self.steps or open_steps(self._refs)
        for position, (ref, data) in enumerate(zip(self._refs, raw, strict=True)):
            dtype, stored = self._stored(position, ref, data, window, (first, last))
            if sampled:
                stored = self._sampled(position, stored, dtype)
            lent = self.operations.view(stored, dtype) if self.lends else None
            if lent is not None:
                arrays.append(lent)
                continue
            out = self._scratch.get(position)
            if out is None or len(out) < count:
                out = self._scratch[position] = self.operations.decode(stored, dtype, wide=self.is_wide)
            else:
                out = self.operations.decode(stored, dtype, out[:count], wide=self.is_wide)
            arrays.append(out)
        has_base = self.job.base is not None
        return Block(
            start=window[0] + first,
            count=count,
            x=tuple(arrays[1:] if has_base else arrays),
            base=arrays[0] if has_base else None,
            operations=self.operations,
        )

    def _sampled(self, position: int, stored: Any, dtype: DType) -> Any:
        """The stored elements that a sample takes, in scratch."""
        import numpy as np

        width = dtype.bits // 8
        values = np.frombuffer(stored, f"V{width}")
        needed = width * _sampled_count(len(values))
        sample = self._samples.get(position)
        if sample is None or len(sample) < needed:
            sample = self._samples[position] = np.empty(needed, np.uint8)
        taken = sample[:needed].view(values.dtype)
        whole = len(values) // SAMPLE_STEP
        rows = taken[: whole * SAMPLE_TAKE].reshape(whole, SAMPLE_TAKE)
        rows[:] = values[: whole * SAMPLE_STEP].reshape(whole, SAMPLE_STEP)[:, :SAMPLE_TAKE]
        taken[whole * SAMPLE_TAKE :] = values[whole * SAMPLE_STEP :][:SAMPLE_TAKE]
        return sample[:needed]

    def _stored(self, position: int, ref: TensorRef, data: Bytes, window: Range, place: Range) -> tuple[DType, Any]:
        """Elements of a window as they are stored, or would be if what the steps make of them were."""
        first, last = place
        steps = self.steps[position]
        if steps is not None:
            return steps.dtype, steps.values(data, window, window[0] + first, window[0] + last)
        width = ref.spec.dtype.bits // 8
        return ref.spec.dtype, data[first * width : last * width]


def _sampled_count(count: int) -> int:
    return count // SAMPLE_STEP * SAMPLE_TAKE + min(SAMPLE_TAKE, count % SAMPLE_STEP)


def held_windows(job: TensorJob, raw: Sequence[Bytes]) -> Iterator[tuple[Range, Sequence[Bytes]]]:
    """The one window of a tensor whose inputs lie in memory."""
    yield (0, job.output.element_count), raw


def streamed_windows(
    job: TensorJob, window: int, readers: Executor, buffers: Sequence[Sequence[Bytes]]
) -> Iterator[tuple[Range, Sequence[Bytes]]]:
    """Windows read from storage, the next one arriving while the current one merges.

    `buffers` are two sets of `window_sizes`.
    """
    ranges = list(cut(job.output.element_count, window))

    def start(index: int) -> list[Future[None]]:
        if index >= len(ranges):
            return []
        elements, into = ranges[index], buffers[index % 2]
        return [
            readers.submit(read)
            for i, ref in enumerate(job.refs)
            if job.shared[i] == i
            for read in range_reads(ref, elements, _sized(into[i], ref, elements))
        ]

    arriving = start(0)
    try:
        for index, elements in enumerate(ranges):
            for future in arriving:
                future.result()
            arriving = start(index + 1)
            current = buffers[index % 2]
            yield elements, [_sized(current[i], ref, elements) for i, ref in zip(job.shared, job.refs, strict=True)]
    finally:
        for future in arriving:  # the buffers may not be reused while a read still fills them
            future.cancel() or future.exception()


def window_sizes(job: TensorJob, elements: int) -> list[int]:
    """For each ref the most bytes that so many consecutive elements lie in, wherever they begin; 0 for shared ones."""
    sizes = []
    for i, ref in enumerate(job.refs):
        unit, nbytes = ref.unit
        most = elements * nbytes if unit == 1 else (elements // unit + 2) * nbytes
        most += ref.gather.extra_bytes if ref.gather is not None else 0
        sizes.append(min(most, ref.nbytes) if job.shared[i] == i else 0)
    return sizes


def _sized(buffer: Bytes, ref: TensorRef, elements: Range) -> Bytes:
    if ref.gather is not None:
        return buffer
    start, end = ref.span(*elements)
    return buffer[: end - start]
