"""Numba kernels that draw: the random bits that random_bits.element_bits defines, and masks of them.

A mask of random bits is a row of four: whether it is drawn, the stream's key, its first element and the limit that the
bits of what it keeps lie below. `words` is scratch, a quarter as long as what is drawn and two more.
"""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import TILE, aligned, inlined, jit  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.random_bits import GOLDEN, LOW_BITS, MIX_1, MIX_2


@inlined
def mixed(z: Any) -> Any:
    """SplitMix64's finaliser: see random_bits.splitmix."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


@inlined
def high_bits(key: Any, first: Any, count: Any, words: Any) -> Any:
    """The highest 16 random bits of `count` elements from `first` on, in `words`."""
    skipped = np.int64(first % np.uint64(4))
    needed = (skipped + count + 3) // 4
    start = key + (first // np.uint64(4) + np.uint64(1)) * np.uint64(GOLDEN)
    for i in range(needed):
        words[i] = mixed(start + np.uint64(i) * np.uint64(GOLDEN))
    return words.view(np.uint16)[skipped : skipped + count]


@jit
def low_bits(key: Any, element: Any) -> Any:
    """The other 48 random bits of an element."""
    return mixed(mixed(key) + (element + np.uint64(1)) * np.uint64(GOLDEN)) >> np.uint64(64 - LOW_BITS)


@inlined
def drawn_mask(draw: Any, start: Any, words: Any, mask: Any) -> None:
    """1 where the random bits of the elements from the `start`-th on lie below the limit."""
    key, first, limit = draw[1], draw[2] + np.uint64(start), draw[3]
    high = high_bits(key, first, mask.size, words)
    last = np.uint16(limit >> np.uint64(LOW_BITS))
    least = np.uint16((1 << 16) - 1)
    for j in range(mask.size):
        least = min(least, np.uint16(high[j] - last))
    for j in range(mask.size):
        mask[j] = high[j] < last
    if least == 0:
        _settle_equal(key, first, limit, high, last, mask)


@jit
def _settle_equal(key: Any, first: Any, limit: Any, high: Any, last: Any, mask: Any) -> None:
    below = limit & np.uint64((1 << LOW_BITS) - 1)
    for j in range(mask.size):
        if high[j] == last:
            mask[j] = low_bits(key, first + np.uint64(j)) < below


@jit
def random_mask(draw: Any, out: Any) -> None:
    """A mask written out: 1 where the random bits lie below the limit."""
    words = aligned(TILE // 4 + 2, np.uint64)
    for start in range(0, out.size, TILE):
        drawn_mask(draw, start, words, out[start : start + TILE])
