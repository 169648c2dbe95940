"""The numba kernel that keeps elements by their random bits and their place in their row."""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import aligned, jit  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.random_bits import LOW_BITS
from raymerge.compute.random_kernels import high_bits, low_bits
from raymerge.compute.selection_kernels import magnitudes

BUCKETS = 1024  # of the highest 16 bits below the largest element's: 8 powers of 2
TABLE = BUCKETS + 1
TABLES = 4  # taken in turn: an increment waits for the last one of the same counter
# Places of a row that are counted: each takes 0.2 us in a row of 4,096, all turns together 7, sorting all of it 26.
MOST_BEFORE_TURNS, MOST_COUNTED = 32, 96
RADIX_BITS = 11


@jit
def rank_mask(
    x: Any, base: Any, has_base: Any, limits: Any, key: Any, first: Any, values: Any, bits: Any, out: Any
) -> None:
    """1 where an element's random bits lie below the limit of its place among its row's magnitudes, largest first.

    Equal magnitudes take their places in index order. `values` is scratch of one row, `bits` the same memory as
    unsigned integers. Limits are monotone, so most random bits lie below or above all of them, and most others below or
    above those of all places that the elements with the same highest bits take. Only what is left needs its place;
    where that is much, as with many equal magnitudes, the row is sorted.
    """
    row_length = limits.size
    if row_length == 0:
        return
    words = aligned(row_length // 4 + 2, np.uint64)
    is_open = np.empty(row_length, np.uint8)
    left = np.empty(row_length, np.uint32)
    draws = aligned(row_length, np.uint64)  # of the elements in `left`
    before = np.empty(TABLES * TABLE, np.uint32)
    buckets = np.empty(row_length, np.uint32)
    places = np.empty(row_length, np.uint32)
    order = np.empty((2, row_length), np.uint32)
    keys = np.empty((2, row_length), bits.dtype)
    for start in range(0, out.size, row_length):
        end = start + row_length
        magnitudes(x[start:end], base[start:end], has_base, values)
        mask = out[start:end]
        count = _draw(key, first + np.uint64(start), limits, words, is_open, left, draws, mask)
        _count_before(bits, buckets, before)
        count = _decide_by_bucket(buckets, limits, before, left[:count], draws, mask)
        if count > MOST_BEFORE_TURNS:
            count = _decide_by_turn(bits, buckets, limits, before, left[:count], draws, is_open, places, mask)
        if count > MOST_COUNTED:
            _sort(bits, keys, order, places)
            for i in range(count):
                mask[left[i]] = draws[i] < limits[places[left[i]]]
        else:
            for i in range(count):
                mask[left[i]] = draws[i] < limits[_place(bits, left[i])]


@jit
def _draw(key: Any, first: Any, limits: Any, words: Any, is_open: Any, left: Any, draws: Any, mask: Any) -> Any:
    """Settle the elements whose highest random bits do it, whatever their place; counts the others, in `left`."""
    high = high_bits(key, first, mask.size, words)
    lowest = np.uint16(min(limits[0], limits[-1]) >> np.uint64(LOW_BITS))
    width = np.uint16(max(limits[0], limits[-1]) >> np.uint64(LOW_BITS)) - lowest
    for j in range(mask.size):
        mask[j] = high[j] < lowest
    for j in range(mask.size):
        is_open[j] = np.uint16(high[j] - lowest) <= width  # below `lowest` it wraps
    count = np.uint32(0)
    for j in range(mask.size):
        left[count] = j
        draws[count] = high[j]
        count += np.uint32(is_open[j])
    for i in range(count):
        draws[i] = draws[i] << np.uint64(LOW_BITS) | low_bits(key, first + np.uint64(left[i]))
    return count


@jit
def _count_before(bits: Any, buckets: Any, before: Any) -> None:
    """Each element's bucket, 0 for the largest magnitudes, and how many elements the earlier buckets hold."""
    shift = bits.dtype.type(bits.itemsize * 8 - 16)
    top = bits[0]
    for j in range(bits.size):
        top = max(top, bits[j])
    top >>= shift
    last = bits.dtype.type(BUCKETS - 1)
    for j in range(bits.size):
        buckets[j] = np.uint32(min(top - (bits[j] >> shift), last))
    before[:] = 0
    whole = bits.size // TABLES * TABLES
    for j in range(0, whole, TABLES):
        for table in range(TABLES):
            before[np.uint32(table * TABLE) + buckets[j + table]] += np.uint32(1)
    for j in range(whole, bits.size):
        before[buckets[j]] += np.uint32(1)
    for table in range(1, TABLES):
        for bucket in range(TABLE):
            before[bucket] += before[table * TABLE + bucket]
    place = np.uint32(0)
    for bucket in range(TABLE):
        found = before[bucket]
        before[bucket] = place
        place += found


@jit
def _decide_by_bucket(buckets: Any, limits: Any, before: Any, left: Any, draws: Any, mask: Any) -> Any:
    """Settle the elements in `left` that need no exact place; moves the others, and their bits, to the front."""
    count = np.uint32(0)
    for i in range(left.size):
        e = left[i]
        bucket = buckets[e]
        high, low = limits[before[bucket]], limits[before[bucket + np.uint32(1)] - np.uint32(1)]
        draw = draws[i]
        mask[e] = draw < min(low, high)
        left[count], draws[count] = e, draw
        count += np.uint32((draw >= min(low, high)) & (draw < max(low, high)))
    return count


@jit
def _decide_by_turn(
    bits: Any, buckets: Any, limits: Any, before: Any, left: Any, draws: Any, is_odd: Any, places: Any, mask: Any
) -> Any:
    """Settle the elements in `left` of the least magnitude that their bucket can hold; moves the others to the front.

    That is one without lower bits, or 0 in the last bucket, which holds all small ones. Such elements come after all
    others of their bucket, in index order. Uses up `before`; returns how many elements are left.
    """
    lower = bits.dtype.type((1 << (bits.itemsize * 8 - 16)) - 1)
    last = np.uint32(BUCKETS - 1)
    for j in range(bits.size):
        is_odd[j] = bits[j] != 0 if buckets[j] == last else bits[j] & lower != 0
    for j in range(bits.size):
        before[buckets[j]] += np.uint32(is_odd[j])
    for j in range(bits.size):
        place = before[buckets[j]]
        places[j] = place
        before[buckets[j]] = place + np.uint32(1 - is_odd[j])
    count = np.uint32(0)
    for i in range(left.size):
        e = left[i]
        mask[e] = draws[i] < limits[min(places[e], np.uint32(limits.size - 1))]
        left[count], draws[count] = e, draws[i]
        count += np.uint32(is_odd[e])
    return count


@jit
def _place(bits: Any, e: Any) -> Any:
    """How many elements come before element e."""
    own, earlier, later = bits[e], bits[:e], bits[e:]
    place = np.uint32(0)
    for j in range(earlier.size):
        place += np.uint32(earlier[j] >= own)
    for j in range(later.size):
        place += np.uint32(later[j] > own)
    return place


@jit
def _sort(bits: Any, keys: Any, order: Any, places: Any) -> None:
    """Every element's place."""
    counts = np.empty(1 << RADIX_BITS, np.uint32)
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
