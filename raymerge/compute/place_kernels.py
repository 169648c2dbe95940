"""Numba kernels that settle the elements of a row whose place must be known: see rank_kernels.

`draw` is what decides at a place: limits and their highest bits, the stream's key and the row's first element; `high`
are the highest bits that were drawn.
"""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import jit  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.random_bits import LOW_BITS
from raymerge.compute.random_kernels import low_bits
from raymerge.compute.tile_kernels import BYTES_OF_1

HEAVY = 8  # the inverse of the share of a row above which equal elements are too many to look for each one's place
LEAST_GROUPS = 8  # tried before the row may be sorted instead
MOST_GROUPS = 96  # magnitudes that a row may have left: one takes 0.08 us in a row of 4,096, sorting all of it 14 us
MANY = 96  # the inverse of the share of a row that makes equal elements many: 40 is no better, four elements 10% slower
RADIX_BITS = 11
BELOW = (1 << LOW_BITS) - 1
ALL_BITS = (1 << 64) - 1  # of a word


@jit
def is_kept(high: Any, e: Any, place: Any, draw: Any) -> Any:
    """Whether the random bits of element e lie below the limit of a place."""
    limits, tops, key, first = draw
    if high[e] == tops[place]:
        return low_bits(key, first + np.uint64(e)) < (limits[place] & np.uint64(BELOW))
    return high[e] < tops[place]


@jit
def decide_pure(
    buckets: Any, parity: Any, tables: Any, segment: Any, high: Any, draw: Any, left: Any, count: Any, mask: Any
) -> Any:
    """Settle those of the first `count` elements in `left` whose buckets hold equal elements, each by its place there.

    What is left is moved to the front; returns how many. Where a bucket holds much of the row, elements are left.
    """
    firsts, totals, counts = tables
    last = np.uint16(totals.size - 1)
    others = np.uint32(0)
    for i in range(count):
        e = left[i]
        own = buckets[e]
        if own == last or (own & np.uint16(1)) != parity or totals[own] * HEAVY > buckets.size:
            left[others] = e
            others += np.uint32(1)
            continue
        part = e // np.uint32(segment)
        same = np.uint16(0)
        before = buckets[part * np.uint32(segment) : e]
        for j in range(before.size):
            same = np.uint16(same + np.uint16(before[j] == own))
        place = np.uint32(firsts[own] + counts[part, own] + np.uint32(same))
        mask[e] = is_kept(high, e, place, draw)
    return others


@jit
def decide_equals(
    bits: Any, high: Any, draw: Any, left: Any, count: Any, same: Any, words: Any, places: Any, mask: Any
) -> Any:
    """Settle the first `count` elements in `left`, those of one magnitude together.

    Where there are too many magnitudes, the rest is left at the front; returns how many they are. `words` is scratch.
    """
    groups, whole = 0, count
    while count > 0:
        if groups >= LEAST_GROUPS and count * groups > MOST_GROUPS * (whole - count):
            break
        groups += 1
        own = bits[left[0]]
        equal = _split(bits, own, left[:count], same)
        count = np.uint32(count - equal)
        if equal * MANY < bits.size:
            _decide_by_turn(bits, own, high, draw, same[:equal], mask)
        else:
            _set_places(bits, own, words, places)
            for i in range(equal):
                mask[same[i]] = is_kept(high, same[i], _place_of(same[i], words, places), draw)
    return count


@jit
def _split(bits: Any, own: Any, left: Any, same: Any) -> Any:
    """Move the elements of one magnitude to `same`, the others in `left` to the front; counts the former."""
    equal = others = np.uint32(0)
    for i in range(left.size):
        e = left[i]
        left[others] = same[equal] = e
        is_equal = np.uint32(bits[e] == own)
        equal = np.uint32(equal + is_equal)
        others = np.uint32(others + np.uint32(1) - is_equal)
    return equal


@jit
def _decide_by_turn(bits: Any, own: Any, high: Any, draw: Any, same: Any, mask: Any) -> None:
    """Settle some elements of one magnitude: the first by all that go before it, each other by its distance to that."""
    place, earlier = np.uint32(0), bits[: same[0]]
    later = bits[same[0] :]
    for j in range(earlier.size):
        place = np.uint32(place + np.uint32(earlier[j] >= own))
    for j in range(later.size):
        place = np.uint32(place + np.uint32(later[j] > own))
    mask[same[0]] = is_kept(high, same[0], place, draw)
    for i in range(1, same.size):
        between = bits[same[i - 1] : same[i]]
        for j in range(between.size):
            place = np.uint32(place + np.uint32(between[j] == own))
        mask[same[i]] = is_kept(high, same[i], place, draw)


@jit
def _sum_bytes(word: Any) -> Any:
    """Of a word whose bytes add up to less than 256."""
    return np.uint32((word * np.uint64(BYTES_OF_1)) >> np.uint64(56))


@jit
def _set_places(bits: Any, own: Any, words: Any, places: Any) -> None:
    """Mark the elements of one magnitude by a byte of 1, and set for each word of eight which place its first takes."""
    is_equal = words.view(np.uint8)
    place = np.uint32(0)
    for j in range(bits.size):
        is_equal[j] = bits[j] == own
    for j in range(bits.size):
        place = np.uint32(place + np.uint32(bits[j] > own))
    for word in range(words.size):
        places[word] = place
        place = np.uint32(place + _sum_bytes(words[word]))


@jit
def _place_of(e: Any, words: Any, places: Any) -> Any:
    """The place of an element that `_set_places` marked."""
    word = e // np.uint32(8)
    earlier = words[word] & ~(np.uint64(ALL_BITS) << np.uint64(e % np.uint32(8) * np.uint32(8)))
    return np.uint32(places[word] + _sum_bytes(earlier))


@jit
def decide_sorted(bits: Any, high: Any, draw: Any, left: Any, places: Any, mask: Any) -> None:
    """Settle the elements in `left`, where there are any, by sorting the whole row; `places` is scratch."""
    if left.size == 0:
        return
    _sort(bits, places)
    for i in range(left.size):
        mask[left[i]] = is_kept(high, left[i], places[left[i]], draw)


@jit
def _sort(bits: Any, places: Any) -> None:
    """Every element's place."""
    counts = np.empty(1 << RADIX_BITS, np.uint32)
    keys, order = np.empty((2, bits.size), bits.dtype), np.empty((2, bits.size), np.uint32)
    here, spare = 0, 1
    for j in range(bits.size):
        keys[here, j] = ~bits[j]
        order[here, j] = j
    shift = 0
    while shift < bits.itemsize * 8 - 1:
        if _sort_by_digit(keys[here], order[here], keys[spare], order[spare], counts, shift):
            here, spare = spare, here
        shift += RADIX_BITS
    for place in range(bits.size):
        places[order[here, place]] = place


@jit
def _sort_by_digit(keys: Any, order: Any, out_keys: Any, out_order: Any, counts: Any, shift: Any) -> Any:
    """One stable counting pass of a radix sort; False, with nothing moved, where all share the digit."""
    counts[:] = 0
    by = keys.dtype.type(shift)
    low = keys.dtype.type((1 << RADIX_BITS) - 1)
    for j in range(keys.size):
        counts[(keys[j] >> by) & low] += np.uint32(1)
    if keys.size > 0 and counts[(keys[0] >> by) & low] == keys.size:
        return False
    place = np.uint32(0)
    for digit in range(counts.size):
        count = counts[digit]
        counts[digit] = place
        place += count
    for j in range(keys.size):
        digit = (keys[j] >> by) & low
        place = counts[digit]
        counts[digit] = place + np.uint32(1)
        out_keys[place] = keys[j]
        out_order[place] = order[j]
    return True
