"""Which rows of which tensors make up another tensor, as runs of neighbours: small, however many rows there are."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[Any]

_FIELDS = 3  # of a run: its first row in the result, how many rows, its first row in the source


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRuns:
    """A result of `row_count` rows: each is the mean of the rows that runs give it, or zeros where none does.

    `packed` are the runs of one source after another, in the result's order, compressed; `run_counts` says how many
    each source has, `read_rows` how many of its rows are used. At most `most_cover` rows make up one of the result, and
    `extra_rows` are used beyond one for each. `sha256` stands for the content.
    """

    row_count: int
    packed: bytes
    run_counts: tuple[int, ...]
    read_rows: tuple[int, ...]
    most_cover: int
    extra_rows: int
    sha256: str

    @property
    def run_count(self) -> int:
        return sum(self.run_counts)


def row_runs(row_count: int, terms: Sequence[tuple[Integers, Integers]]) -> RowRuns:
    """Runs from terms: for each source rows of the result, rising, and the rows of the source that they are made of."""
    import numpy as np

    cover = np.zeros(row_count, np.int32)
    runs, counts, read = [], [], []
    for places, rows in terms:
        found = _runs_of(np.asarray(places, np.int64), np.asarray(rows, np.int64))
        runs.append(found)
        counts.append(len(found))
        read.append(len(np.unique(rows)))
        cover[places] += 1
    raw = np.concatenate([np.zeros((0, _FIELDS), "<i4"), *runs]).astype("<i4").tobytes()
    head = repr((row_count, counts)).encode()
    return RowRuns(
        row_count=row_count,
        packed=zlib.compress(raw, 6),
        run_counts=tuple(counts),
        read_rows=tuple(read),
        most_cover=max(1, int(cover.max(initial=0))),
        extra_rows=int(np.maximum(cover - 1, 0).sum()),
        sha256=hashlib.sha256(head + raw).hexdigest(),
    )


@lru_cache(maxsize=8)  # of the tensors that a task merges or reads now
def unpack_runs(runs: RowRuns) -> tuple[Integers, ...]:
    """For each source its runs: (first row of the result, count of rows, first row of the source) as int64."""
    import numpy as np

    whole = np.frombuffer(zlib.decompress(runs.packed), "<i4").reshape(-1, _FIELDS).astype(np.int64)
    ends = np.cumsum(runs.run_counts)
    return tuple(whole[end - count : end] for count, end in zip(runs.run_counts, ends, strict=True))


def _runs_of(places: Integers, rows: Integers) -> Integers:
    import numpy as np

    if not len(places):
        return np.zeros((0, _FIELDS), np.int64)
    breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(rows) != 1)) + 1
    starts = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(places)]])
    return np.stack([places[starts], ends - starts, rows[starts]], axis=1)
