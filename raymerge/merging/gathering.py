"""Reading and putting together the rows of tensors that are aligned to another vocabulary, for any part of the result.

What a window of the result needs lies in one buffer: for one source after another the rows that are used, in the
source's own order and once each, so that neighbours are read together however the result orders them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raymerge.checkpoint.nouns import SourceFile, TensorRef
from raymerge.checkpoint.row_runs import unpack_runs
from raymerge.checkpoint.steps import PIECE_BYTES, GatherRows
from raymerge.compute.operations import Operations
from raymerge.storage import store_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Runs = NDArray[np.int64]

Bytes = Any  # a 1-D uint8 numpy array
Values = Any  # a 1-D numpy array of float32 or float64
Range = tuple[int, int]  # elements [start, end)

# Reading over a gap of this size costs less than another request, on a disk and in an object store.
_GAP_BYTES = 64 * 1024


class Opened(Protocol):
    """A source's own steps, ready."""

    def values(self, raw: Bytes, window: Range, start: int, end: int) -> Values:
        """Elements [start, end); `raw` are the stored bytes of `window`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of a file, and where in the buffer they go."""

    file: SourceFile
    offset: int
    into: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Parts of one file that are read in one request: from one part alone, or from all between the first and last."""

    parts: tuple[Part, ...]

    def read(self, buffer: Bytes) -> None:
        first, last = self.parts[0], self.parts[-1]
        store, url, version = store_for(first.file.url), first.file.url, first.file.version
        if first is last:
            into = buffer[first.into : first.into + first.nbytes]
            store.read_into(url, into, offset=first.offset, version=version)
            return
        whole: Bytes = np.empty(last.offset + last.nbytes - first.offset, np.uint8)
        store.read_into(url, whole, offset=first.offset, version=version)
        for part in self.parts:
            start = part.offset - first.offset
            buffer[part.into : part.into + part.nbytes] = whole[start : start + part.nbytes]


def pieces(ref: TensorRef, window: Range) -> list[Piece]:
    """What to read for elements [start, end) of a tensor whose rows are gathered."""
    gather = ref.gather
    assert gather is not None
    found: list[Piece] = []
    for layout, source in zip(_layouts(gather, window), gather.sources, strict=True):
        waiting: list[Part] = []
        for part in layout.parts(source):
            if waiting and not _is_near(waiting[0], waiting[-1], part):
                found.append(Piece(parts=tuple(waiting)))
                waiting = []
            waiting.append(part)
        if waiting:
            found.append(Piece(parts=tuple(waiting)))
    return found


def _is_near(first: Part, last: Part, part: Part) -> bool:
    gap = part.offset - (last.offset + last.nbytes)
    return gap <= _GAP_BYTES and part.offset + part.nbytes - first.offset <= PIECE_BYTES


@dataclass(frozen=True, slots=True)
class _Layout:
    """The rows of one source that a window needs: intervals [starts, ends) of its rows, and where they go.

    `clipped` are the runs inside the window: first row of the result, count, first row of the source.
    """

    clipped: Runs
    starts: Runs
    ends: Runs
    begins: Runs
    nbytes: int
    columns: int

    def parts(self, source: TensorRef) -> Iterator[Part]:
        for start, end, begin in zip(self.starts.tolist(), self.ends.tolist(), self.begins.tolist(), strict=True):
            first, last = source.span(start * self.columns, end * self.columns)
            yield Part(file=source.file, offset=source.offset + first, into=begin, nbytes=last - first)


def _layouts(gather: GatherRows, window: Range) -> list[_Layout]:
    """The layout of every source, one after the other in the buffer, for elements [start, end) of the result."""
    first, last = _rows(window, gather.columns)
    begin = 0
    layouts = []
    for source, runs in zip(gather.sources, unpack_runs(gather.runs), strict=True):
        clipped = clip(runs, first, last)
        starts, ends = _joined(clipped)
        sizes = _interval_bytes(source, starts, ends, gather.columns)
        begins = begin + np.concatenate([[0], np.cumsum(sizes)])
        nbytes = int(begins[-1]) - begin
        layouts.append(_Layout(clipped, starts, ends, begins[:-1].astype(np.int64), nbytes, gather.columns))
        begin += nbytes
    return layouts


def clip(runs: Runs, first: int, last: int) -> Runs:
    """The part of runs (first row of the result, count, first row of the source) inside rows [first, last)."""
    low = np.searchsorted(runs[:, 0] + runs[:, 1], first, side="right")
    high = np.searchsorted(runs[:, 0], last, side="left")
    inside = runs[low:high].copy()
    if len(inside):
        skipped = max(0, first - int(inside[0, 0]))
        inside[0] += (skipped, -skipped, skipped)
        inside[-1, 1] = min(int(inside[-1, 1]), last - int(inside[-1, 0]))
    return inside


def _joined(clipped: Runs) -> tuple[Runs, Runs]:
    """The rows of the source that runs name, as intervals in order that neither touch nor overlap."""
    ordered = clipped[np.argsort(clipped[:, 2], kind="stable")]
    starts, ends = ordered[:, 2], np.maximum.accumulate(ordered[:, 2] + ordered[:, 1])
    if not len(starts):
        return starts, ends
    is_first = np.concatenate([[True], starts[1:] > ends[:-1]])
    is_last = np.concatenate([is_first[1:], [True]])
    return starts[is_first], ends[is_last]


def _interval_bytes(source: TensorRef, starts: Runs, ends: Runs, columns: int) -> Runs:
    elements, nbytes = source.unit
    first, last = starts * columns // elements, -(-ends * columns // elements)
    return np.minimum(last * nbytes, source.nbytes) - first * nbytes


def _rows(window: Range, columns: int) -> Range:
    return window[0] // columns, -(-window[1] // columns)


class GatheredRows:
    """Puts rows together; `opened` are the sources' own steps. For one thread at a time."""

    def __init__(self, gather: GatherRows, opened: Sequence[Opened | None], operations: Operations) -> None:
        self._gather = gather
        self._opened = opened
        self._operations = operations
        self._window: Range | None = None
        self._layouts: list[_Layout] = []

    def values(self, raw: Bytes, window: Range, start: int, end: int, *, wide: bool) -> Values:
        """Elements [start, end) of the result; `raw` is the buffer of a window that holds them."""
        if window != self._window:
            self._window, self._layouts = window, _layouts(self._gather, window)
        columns = self._gather.columns
        first, last = _rows((start, end), columns)
        clipped = (clip(layout.clipped, first, last) for layout in self._layouts)
        found = [(number, runs) for number, runs in enumerate(clipped) if len(runs)]
        if len(found) == 1 and int(found[0][1][:, 1].sum()) == last - first:  # most blocks: one source has every row
            out = self._source_rows(*found[0], raw, wide=wide)
        else:
            out = self._several(found, (first, last), raw, wide=wide)
        return out.reshape(-1)[start - first * columns : end - first * columns]

    def _several(self, found: Sequence[tuple[int, Runs]], rows: Range, raw: Bytes, *, wide: bool) -> Any:
        """Rows [first, last) of the result, which several sources give, or none."""
        first, last = rows
        out = np.zeros((last - first, self._gather.columns), np.float64 if wide else np.float32)
        places = [_expanded(runs[:, 0], runs[:, 1]) - first for _, runs in found]
        cover = np.zeros(last - first, np.int64)
        for each in places:
            cover[each] += 1
        mixed = np.flatnonzero(cover > 1)
        slots = np.full(last - first, -1)
        slots[mixed] = np.arange(len(mixed))
        totals = np.zeros((len(mixed), self._gather.columns), np.float64)
        for (number, runs), each in zip(found, places, strict=True):
            values = self._source_rows(number, runs, raw, wide=wide)
            slot = slots[each]
            if len(mixed) and slot.max() >= 0:
                totals[slot[slot >= 0]] += values[slot >= 0]
            out[each] = values
        out[mixed] = totals / cover[mixed, None]
        return out

    def _source_rows(self, number: int, runs: Runs, raw: Bytes, *, wide: bool) -> Any:
        """The rows of one source that `runs` name, in their order, decoded."""
        source, layout, opened = self._gather.sources[number], self._layouts[number], self._opened[number]
        columns = self._gather.columns
        if opened is None:
            width = self._gather.row_bytes(source)
            if len(runs) == 1:
                return self._neighbours(source, layout, runs, raw, wide=wide)
            rows = _expanded(runs[:, 2], runs[:, 1])
            at = np.searchsorted(layout.starts, rows, side="right") - 1
            base = int(layout.begins[0])
            places = (layout.begins[at] - base) // width + rows - layout.starts[at]
            stored = raw[base : base + layout.nbytes].reshape(-1, width)[places]
            return self._operations.decode(stored.reshape(-1), source.spec.dtype, wide=wide).reshape(-1, columns)
        out = np.empty((int(runs[:, 1].sum()), columns), np.float64 if wide else np.float32)
        done = 0
        for _, count, first in runs.tolist():
            inside = int(np.searchsorted(layout.starts, first, side="right")) - 1
            window = int(layout.starts[inside]) * columns, int(layout.ends[inside]) * columns
            begin = int(layout.begins[inside])
            data = raw[begin : begin + source.span(*window)[1] - source.span(*window)[0]]
            values = opened.values(data, window, first * columns, (first + count) * columns)
            out[done : done + count] = values.reshape(count, columns)
            done += count
        return out

    def _neighbours(self, source: TensorRef, layout: _Layout, runs: Runs, raw: Bytes, *, wide: bool) -> Any:
        """The rows of one run, which lie side by side in the buffer."""
        width = self._gather.row_bytes(source)
        _, count, first = runs[0].tolist()
        inside = int(np.searchsorted(layout.starts, first, side="right")) - 1
        begin = int(layout.begins[inside]) + (first - int(layout.starts[inside])) * width
        stored = raw[begin : begin + count * width]
        return self._operations.decode(stored, source.spec.dtype, wide=wide).reshape(count, -1)


def _expanded(starts: Runs, counts: Runs) -> Runs:
    """The numbers of all runs, one after the other."""
    total = int(counts.sum())
    begins = np.cumsum(counts) - counts
    return np.repeat(starts - begins, counts) + np.arange(total)
