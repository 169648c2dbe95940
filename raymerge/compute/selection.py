"""The exact k largest magnitudes of a tensor, found by counting 16-bit digits, never by sorting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raymerge.compute.operations import Array, Mask, Operations

DIGIT_BITS = 16
Pair = tuple["Array", "Array | None"]  # a block of one input, and of the base it is taken from


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
    operations: Operations, open_blocks: Callable[[], Iterator[Sequence[Pair]]], wanted: Sequence[tuple[int, int]]
) -> tuple[Threshold, ...]:
    """For each (input, k): where the k largest magnitudes of that input end; k from 1 to the element count.

    `open_blocks` gives one pass over the tensor: for each block one pair per input. Two passes for float32 blocks,
    four for float64.
    """
    searches = [_Search(input_index, rank) for input_index, rank in wanted]
    digit = 0
    while not searches or not all(search.is_done for search in searches):
        for pairs in open_blocks():
            for search in searches:
                search.observe(operations, pairs, digit)
        for search in searches:
            search.descend()
        digit += 1
        if not searches:
            break
    return tuple(search.threshold() for search in searches)


class _Search:
    """The digits of one threshold, from the highest on."""

    def __init__(self, input_index: int, rank: int) -> None:
        self._input = input_index
        self._rank = rank  # of the element sought among those that share the digits found so far, from the largest
        self._prefix = 0
        self._digits = 0
        self._digits_needed = 0
        self._equal = 0
        self._counts: NDArray[np.int64] | None = None

    @property
    def is_done(self) -> bool:
        return 0 < self._digits_needed <= self._digits

    def observe(self, operations: Operations, pairs: Sequence[Pair], digit: int) -> None:
        x, base = pairs[self._input]
        self._digits_needed = x.itemsize * 8 // DIGIT_BITS
        counts = operations.histogram(x, base, digit, self._prefix)
        self._counts = counts if self._counts is None else self._counts + counts

    def descend(self) -> None:
        assert self._counts is not None
        from_the_top = self._counts[::-1].cumsum()
        place = int((from_the_top < self._rank).sum())
        digit = len(self._counts) - 1 - place
        self._equal = int(self._counts[digit])
        self._rank -= int(from_the_top[place]) - self._equal
        self._prefix = self._prefix << DIGIT_BITS | digit
        self._digits += 1
        self._counts = None

    def threshold(self) -> Threshold:
        import struct

        code, word = ("<f", "<I") if self._digits == 2 else ("<d", "<Q")
        value = struct.unpack(code, struct.pack(word, self._prefix))[0]
        return Threshold(value=value, keep_equal=self._rank, equal=self._equal)


class TopKeeper:
    """Masks of the k largest magnitudes of one input, block by block in element order.

    Among equals at the threshold the lowest element indices are kept: how many are left is carried from block to block.
    """

    def __init__(self, threshold: Threshold) -> None:
        self._threshold = threshold
        self._left = threshold.keep_equal
        self._keeps_all_equal = threshold.keep_equal == threshold.equal

    def mask(self, operations: Operations, x: Array, base: Array | None) -> Mask:
        value = self._threshold.value
        return operations.top_mask(x, base, value, self._cut(operations, x, base, value))

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
