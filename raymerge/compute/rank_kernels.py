"""The numba kernel that keeps elements by their random bits and their place in their row."""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import aligned, hold, jit, lent  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.random_bits import LOW_BITS
from raymerge.compute.random_kernels import high_bits, low_bits
from raymerge.compute.selection_kernels import magnitudes

BUCKETS = 1024  # of the highest 16 bits below the largest element's: 8 powers of 2
TABLE, QUARTER = BUCKETS + 1, BUCKETS // 4
ODD = 1 << 15  # in the code of an element: it is not the least magnitude that its bucket can hold
MOST_COUNTED = 96  # places of a row: each takes 0.08 us in a row of 4,096, sorting all of it 14 us
SEGMENT = 1 << 15  # elements whose number 16 bits can hold
RADIX_BITS = 11


@jit
def rank_mask(
    x: Any, base: Any, has_base: Any, limits: Any, key: Any, first: Any, values: Any, bits: Any, out: Any
) -> None:
    """1 where an element's random bits lie below the limit of its place among its row's magnitudes, largest first.

    Equal magnitudes take their places in index order. `values` is scratch of one row, `bits` the same memory as
    unsigned integers. Limits are monotone, so most random bits lie below or above all of them, and most others below or
    above those of all places that the elements of the same bucket take. Of what is left most are the least magnitude of
    their bucket, as equal magnitudes of bfloat16 models are, and take their bucket's last places in turn. Only the rest
    needs its place; where that is much, the row is sorted.
    """
    row_length = limits.size
    if row_length == 0:
        return
    word_memory = aligned(row_length // 4 + 2, np.uint64)
    draw_memory = aligned(row_length, np.uint64)  # of the elements in `left`
    code_memory = aligned(2 * row_length, np.uint16)
    place_memory = aligned(2 * row_length, np.uint32)
    table_memory = aligned(4 * TABLE, np.uint32)
    open_memory = aligned(row_length, np.uint8)
    words, draws, is_open = lent(word_memory), lent(draw_memory), lent(open_memory)
    buckets, codes = lent(code_memory)[:row_length], lent(code_memory)[row_length:]
    left, places = lent(place_memory)[:row_length], lent(place_memory)[row_length:]
    before, seen = lent(table_memory)[: 2 * TABLE].reshape(2, TABLE), lent(table_memory)[2 * TABLE :].reshape(2, TABLE)
    order = np.empty((2, row_length), np.uint32)
    keys = np.empty((2, row_length), bits.dtype)
    x, base, limits = lent(x), lent(base), lent(limits)
    values, bits, out = lent(values), lent(bits), lent(out)
    for start in range(0, out.size, row_length):
        end = start + row_length
        magnitudes(x[start:end], base[start:end], has_base, values)
        mask = out[start:end]
        count = _draw(key, first + np.uint64(start), limits, words, is_open, left, draws, mask)
        _set_buckets(bits, buckets, codes)
        _count_before(buckets, before[0], before[1])
        count = _decide_by_bucket(buckets, limits, before[0], left[:count], draws, mask)
        count = _decide_by_turn(codes, limits, before[0], seen, left[:count], draws, mask)
        if count > MOST_COUNTED:
            _sort(bits, keys, order, places)
            for i in range(count):
                mask[left[i]] = draws[i] < limits[places[left[i]]]
        else:
            for i in range(count):
                mask[left[i]] = draws[i] < limits[_place(bits, left[i])]
    hold((word_memory, draw_memory, code_memory, place_memory, table_memory, open_memory))


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
def _set_buckets(bits: Any, buckets: Any, codes: Any) -> None:
    """Each element's bucket, 0 for the largest magnitudes, and its code: its bucket, marked where it is odd.

    The least magnitude that a bucket can hold is one without lower bits, or 0 in the last, which holds all small ones.
    """
    shift = bits.dtype.type(bits.itemsize * 8 - 16)
    lower = bits.dtype.type((1 << (bits.itemsize * 8 - 16)) - 1)
    last = bits.dtype.type(BUCKETS - 1)
    top = bits[0]
    for j in range(bits.size):
        top = max(top, bits[j])
    top >>= shift
    for j in range(bits.size):
        bucket = min(top - (bits[j] >> shift), last)
        above = bits[j] if bucket == last else bits[j] & lower
        buckets[j] = np.uint16(bucket)
        codes[j] = np.uint16(bucket) | np.uint16(ODD if above != 0 else 0)


@jit
def _count_before(buckets: Any, before: Any, spare: Any) -> None:
    """How many elements the buckets before each hold."""
    before[:] = 0
    spare[:] = 0
    for j in range(0, buckets.size // 2 * 2, 2):  # in turn: an increment waits for the last of its counter
        before[buckets[j]] += np.uint32(1)
        spare[buckets[j + 1]] += np.uint32(1)
    if buckets.size % 2:
        before[buckets[buckets.size - 1]] += np.uint32(1)
    for bucket in range(TABLE):
        before[bucket] += spare[bucket]
    first = second = third = fourth = np.uint32(0)
    for b in range(QUARTER):  # four sums side by side: an addition waits for the last of the same sum
        counts = before[b], before[b + QUARTER], before[b + 2 * QUARTER], before[b + 3 * QUARTER]
        before[b], before[b + QUARTER], before[b + 2 * QUARTER], before[b + 3 * QUARTER] = first, second, third, fourth
        first, second = np.uint32(first + counts[0]), np.uint32(second + counts[1])
        third, fourth = np.uint32(third + counts[2]), np.uint32(fourth + counts[3])
    second = np.uint32(first + second)
    third = np.uint32(second + third)
    for b in range(QUARTER):
        before[b + QUARTER] += first
        before[b + 2 * QUARTER] += second
        before[b + 3 * QUARTER] += third
    before[BUCKETS] = buckets.size


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
def _decide_by_turn(codes: Any, limits: Any, before: Any, seen: Any, left: Any, draws: Any, mask: Any) -> Any:
    """Settle the elements in `left` that are not odd; moves the others to the front and returns how many they are.

    They come after the odd ones of their bucket, in index order: their places are counted from their bucket's end.
    `seen` keeps how many each bucket has from which element on.
    """
    seen[0] = 0
    seen[1] = codes.size
    for i in range(left.size):
        latest = np.uint32(left.size - 1 - i)
        e = left[latest]
        code = codes[e]
        if code < np.uint16(ODD):
            bucket = np.uint32(code)
            for start in range(e, seen[1, bucket], SEGMENT):
                segment = codes[start : min(start + SEGMENT, seen[1, bucket])]
                found = np.uint16(0)
                for j in range(segment.size):
                    found = np.uint16(found + np.uint16(segment[j] == code))
                seen[0, bucket] += np.uint32(found)
            seen[1, bucket] = e
            mask[e] = draws[latest] < limits[before[bucket + np.uint32(1)] - seen[0, bucket]]
    count = np.uint32(0)
    for i in range(left.size):
        e = left[i]
        left[count], draws[count] = e, draws[i]
        count += np.uint32(codes[e] >= np.uint16(ODD))
    return count


@jit
def _place(bits: Any, e: Any) -> Any:
    """How many elements come before element e."""
    own, earlier, later = bits[e], bits[:e], bits[e:]
    place = np.uint32(0)
    for j in range(earlier.size):
        place = np.uint32(place + np.uint32(earlier[j] >= own))
    for j in range(later.size):
        place = np.uint32(place + np.uint32(later[j] > own))
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
