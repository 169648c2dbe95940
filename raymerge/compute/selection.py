"""The exact k largest magnitudes of a tensor, found by counting 16-bit digits, never by sorting."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from raymerge.compute.operations import Limit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raymerge.compute.operations import Array, Mask, Operations

HIGH_BINS = 1 << 15  # a magnitude's highest 16 bits, of which the sign's is 0
MOST_BINS = 1 << 19  # a table of 2 MiB
PAGE = 1 << 12  # entries of a table that are added up at a time
SAMPLE_FROM = 1 << 18  # elements; a sample of fewer leaves too many patterns in question
# Neighbouring elements resemble each other: far more than independent draws would need. Of matrices with 30% of their
# rows unchanged 6 missed three of four medians, 8 none; with rows of magnitudes e^N(0, 1) it missed one of four.
SAMPLE_SIGMAS = 8.0
# What has to be counted: input, lowest pattern, patterns in an entry (as a shift), entries.
Table = tuple[int, int, int, int]
Pair = tuple["Array", "Array | None"]  # a block of one input, and of the base it is taken from
OpenBlocks = Callable[[bool], Iterator[Sequence[Pair]]]  # True: a sample will do


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The magnitude of the last element kept: all above it are kept, and of the `equal` ones the first `keep_equal`."""

    value: float
    keep_equal: int
    equal: int


def kept_count(density: float, element_count: int) -> int:
    """floor(density * n) in IEEE doubles, at least 1 and at most n; none for a density of 0 or less."""
    if density <= 0 or element_count == 0:
        return 0
    return max(1, min(element_count, int(density * element_count)))


def find_thresholds(
    operations: Operations, open_blocks: OpenBlocks, wanted: Sequence[tuple[int, int]], element_count: int
) -> tuple[Threshold, ...]:
    """For each (input, k): where the k largest magnitudes of that input end; k from 1 to the element count.

    `open_blocks` gives one pass over the tensor: for each block one pair per input. Of a large tensor a first pass
    takes a sample, which says where to look; the counts of the second show whether it was right. Elements of 16 bits,
    and what changes between such, then lie on a grid whose magnitudes each have an entry of their own. Else another
    pass tells those of one entry apart, and two more correct a sample that misled; the result does not depend on it.
    Twice that over float64.
    """
    searches = [_Search(input_index, rank, element_count) for input_index, rank in wanted]
    while not all(search.is_done for search in searches):
        going = [search for search in searches if not search.is_done]
        tables: dict[Table, Array] = {}
        fine: dict[Table, int] = {}
        for pairs in open_blocks(all(search.takes_sample for search in going)):
            _count(operations, pairs, going, tables, fine)
        for search in going:
            table = search.table
            search.descend(operations.read_counts(tables[table]), is_exact=fine[table] == 0)
        for counts in tables.values():
            operations.recycle_counts(counts)
    return tuple(search.threshold() for search in searches)


def _count(
    operations: Operations,
    pairs: Sequence[Pair],
    searches: Sequence[_Search],
    tables: dict[Table, Array],
    fine: dict[Table, int],
) -> None:
    """Count a block into every table that a search needs, each once; `fine` sums up what count_magnitudes returns."""
    for search in searches:
        search.start(operations, pairs[search.input_index][0])
    for table in dict.fromkeys(search.table for search in searches):
        input_index, low, shift, bins = table
        if table not in tables:
            tables[table] = operations.empty_counts(bins, search.element_count)
        x, base = pairs[input_index]
        found = operations.count_magnitudes(x, base, tables[table], low=low, shift=shift)
        fine[table] = fine.get(table, 0) + found


class _Search:
    """The interval of bit patterns that the magnitude of one rank lies in, halved by every pass but a sample."""

    def __init__(self, input_index: int, rank: int, element_count: int) -> None:
        self.input_index = input_index
        self._rank = rank  # from the largest, at 1
        self.element_count = element_count
        self._bits = 0  # of an element, without the sign; 0 until the first block is seen
        self._low = 0
        self._size = 0  # patterns in the interval
        self.takes_sample = element_count >= SAMPLE_FROM
        self._found: Threshold | None = None

    @property
    def is_done(self) -> bool:
        return self._found is not None

    @property
    def _shift(self) -> int:
        most = HIGH_BINS if self._low == 0 else MOST_BINS
        return max(0, (-(-self._size // most) - 1).bit_length())

    @property
    def table(self) -> Table:
        return self.input_index, self._low, self._shift, -(-self._size >> self._shift)

    def start(self, operations: Operations, x: Array) -> None:
        if not self._bits:
            self._bits = operations.magnitude_bits(x)
            self._size = 1 << self._bits

    def descend(self, counts: NDArray[np.integer[Any]], *, is_exact: bool) -> None:
        """Narrow the interval by what was counted in it: counts, and in the last entry what lies above.

        `is_exact`: all elements of an entry have its first pattern.
        """
        above, inside = int(counts[-1]), counts[:-1]
        if self.takes_sample:
            self._guess(inside)
            return
        if self._rank <= above:  # the sample misled
            self._low += self._size
            self._size = (1 << self._bits) - self._low
            return
        pages = _page_sums(inside)
        if self._rank > above + int(pages.sum()):
            self._low, self._size = 0, self._low
        else:
            self._narrow(above, inside, pages, is_exact=is_exact)

    def _guess(self, sampled: NDArray[np.integer[Any]]) -> None:
        """The entries between which the rank lies all but certainly."""
        self.takes_sample = False
        drawn = int(sampled.sum())
        share = self._rank / self.element_count
        margin = SAMPLE_SIGMAS * (share * (1 - share) / drawn) ** 0.5
        from_the_top = sampled[::-1].cumsum()
        width = 1 << self._shift
        highest = int(from_the_top.searchsorted((share - margin) * drawn))
        lowest = min(len(sampled) - 1, int(from_the_top.searchsorted((share + margin) * drawn)))
        self._low = (len(sampled) - 1 - lowest) * width
        self._size = (lowest - highest + 1) * width

    def _narrow(
        self, above: int, inside: NDArray[np.integer[Any]], pages: NDArray[np.integer[Any]], *, is_exact: bool
    ) -> None:
        entry, higher = _entry_of(self._rank - above, inside, pages)
        higher += above
        equal = int(inside[entry])
        shift = self._shift
        self._low += entry << shift
        self._size = 1 << shift
        if shift == 0 or is_exact:
            self._found = Threshold(
                value=_from_bits(self._low, self._bits), keep_equal=self._rank - higher, equal=equal
            )

    def threshold(self) -> Threshold:
        assert self._found is not None
        return self._found


def _page_sums(counts: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """What every PAGE entries add up to; no sum exceeds the table's type, which holds the count of all elements."""
    import numpy as np

    return np.add.reduceat(counts, range(0, len(counts), PAGE), dtype=counts.dtype)


def _entry_of(rank: int, counts: NDArray[np.integer[Any]], pages: NDArray[np.integer[Any]]) -> tuple[int, int]:
    """Which entry of a table holds a rank, counted from its end, and how many elements the entries above hold."""
    page, higher = _place_of(rank, pages)
    start = PAGE * page
    entry, above = _place_of(rank - higher, counts[start : start + PAGE])
    return start + entry, higher + above


def _place_of(rank: int, counts: NDArray[np.integer[Any]]) -> tuple[int, int]:
    """The entry that holds a rank counted from the end, which must not lie beyond, and the sum of those above it."""
    from_the_top = counts[::-1].cumsum()
    place = int(from_the_top.searchsorted(rank))
    entry = len(counts) - 1 - place
    return entry, int(from_the_top[place]) - int(counts[entry])


def _from_bits(bits: int, size: int) -> float:
    code, word = ("<f", "<I") if size < 32 else ("<d", "<Q")
    value: float = struct.unpack(code, struct.pack(word, bits))[0]
    return value


class TopKeeper:
    """Masks of the k largest magnitudes of one input, block by block in element order.

    Among equals at the threshold the lowest element indices are kept: how many are left is carried from block to block.
    """

    def __init__(self, threshold: Threshold) -> None:
        self._threshold = threshold
        self._left = threshold.keep_equal
        self._keeps_all_equal = threshold.keep_equal == threshold.equal

    def mask(self, operations: Operations, x: Array, base: Array | None) -> Mask:
        """The mask of the next block, written out."""
        value = self._threshold.value
        return operations.top_mask(x, base, value, self._cut(operations, x, base, value))

    def keep(self, operations: Operations, x: Array, base: Array | None) -> Mask:
        """The mask of the next block, as a Limit unless it ends between equals or keeps what is not finite."""
        value = self._threshold.value
        cut = self._cut(operations, x, base, value)
        if 0 < cut < len(x) or not isfinite(value):
            return operations.top_mask(x, base, value, cut)
        return Limit(threshold=value, inclusive=cut > 0)

    def _cut(self, operations: Operations, x: Array, base: Array | None, value: float) -> int:
        if self._keeps_all_equal:
            return len(x)
        if self._left == 0:
            return 0
        found = operations.count_equal(x, base, value)
        if found <= self._left:
            self._left -= found
            return len(x)
        cut = operations.index_after_equals(x, base, value, self._left)
        self._left = 0
        return cut
