"""Blocks of one output tensor's inputs: from memory where they fit, else streamed from storage window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from raymerge.checkpoint.nouns import TensorRef
from raymerge.compute.operations import Operations
from raymerge.dtypes import DType
from raymerge.methods.inputs import Block
from raymerge.planning.memory import block_elements
from raymerge.planning.nouns import TensorJob
from raymerge.storage import store_for

Bytes = Any  # a 1-D uint8 numpy array
Range = tuple[int, int]  # elements [start, end)
LoadWindow = Callable[[Range], Sequence[Bytes]]


def read_range(ref: TensorRef, elements: Range, buffer: Bytes) -> None:
    """Fill `buffer` with elements [start, end) of a stored tensor."""
    start = elements[0] * ref.spec.dtype.bits // 8
    store_for(ref.file.url).read_into(ref.file.url, buffer, offset=ref.offset + start, version=ref.file.version)


def cut(count: int, unit: int) -> Iterator[Range]:
    for start in range(0, count, unit):
        yield start, min(start + unit, count)


@dataclass(slots=True)
class Scanner:
    """Decodes windows into blocks.

    `windows(rows)` yields (elements, raw bytes of every ref) in element order, with `rows` windows of whole rows.
    """

    job: TensorJob
    operations: Operations
    block_elements: int
    windows: Callable[[bool], Iterator[tuple[Range, Sequence[Bytes]]]]
    _scratch: list[Any] = field(default_factory=list)

    def scan(self, rows: bool) -> Iterator[Block]:
        """One pass in element order; see `Inputs.scan`."""
        unit = block_elements(self.job.output.shape, rows=rows, target=self.block_elements)
        for (start, end), raw in self.windows(rows):
            for first, last in cut(end - start, unit):
                yield self._block(start, first, last, raw)

    @property
    def is_wide(self) -> bool:
        return any(ref.spec.dtype is DType.F64 for ref in self.job.refs)

    def _block(self, window_start: int, first: int, last: int, raw: Sequence[Bytes]) -> Block:
        arrays = []
        for position, (ref, data) in enumerate(zip(self.job.refs, raw, strict=True)):
            width = ref.spec.dtype.bits // 8
            out = self._scratch[position][: last - first] if position < len(self._scratch) else None
            if out is not None and len(out) < last - first:
                out = None
            decoded = self.operations.decode(data[first * width : last * width], ref.spec.dtype, out, wide=self.is_wide)
            if out is None:
                self._keep_scratch(position, decoded)
            arrays.append(decoded)
        has_base = self.job.base is not None
        return Block(
            start=window_start + first,
            count=last - first,
            x=tuple(arrays[1:] if has_base else arrays),
            base=arrays[0] if has_base else None,
            operations=self.operations,
        )

    def _keep_scratch(self, position: int, decoded: Any) -> None:
        if position < len(self._scratch):
            self._scratch[position] = decoded
        else:
            self._scratch.append(decoded)


def held_windows(job: TensorJob, raw: Sequence[Bytes]) -> Iterator[tuple[Range, Sequence[Bytes]]]:
    """The one window of a tensor whose inputs lie in memory."""
    yield (0, job.output.element_count), raw


def streamed_windows(
    job: TensorJob, window: int, readers: Executor, buffers: Sequence[Sequence[Bytes]]
) -> Iterator[tuple[Range, Sequence[Bytes]]]:
    """Windows read from storage, the next one arriving while the current one merges; `buffers` are two sets of them."""
    ranges = list(cut(job.output.element_count, window))

    def start(index: int) -> list[Future[None]]:
        if index >= len(ranges):
            return []
        elements, into = ranges[index], buffers[index % 2]
        return [
            readers.submit(read_range, ref, elements, _sized(buffer, ref, elements))
            for ref, buffer in zip(job.refs, into, strict=True)
        ]

    arriving = start(0)
    try:
        for index, elements in enumerate(ranges):
            for future in arriving:
                future.result()
            arriving = start(index + 1)
            current = zip(job.refs, buffers[index % 2], strict=True)
            yield elements, [_sized(buffer, ref, elements) for ref, buffer in current]
    finally:
        for future in arriving:  # the buffers may not be reused while a read still fills them
            future.cancel() or future.exception()


def _sized(buffer: Bytes, ref: TensorRef, elements: Range) -> Bytes:
    return buffer[: (elements[1] - elements[0]) * ref.spec.dtype.bits // 8]
