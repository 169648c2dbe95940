"""The numba kernel that keeps elements by their random bits and their place in their row."""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import aligned, hold, inlined, jit, lent  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.random_bits import LOW_BITS
from raymerge.compute.random_kernels import high_bits, low_bits
from raymerge.compute.selection_kernels import magnitudes
from raymerge.compute.tile_kernels import BYTES_OF_1, fetch

BUCKETS = 1024  # of the highest 16 bits below the largest element's: 8 powers of 2
ELEMENTS = 6  # in a bucket: shorter rows join two, and these again; in rows of 700, all 1024 took a quarter longer
MOST_HALVINGS = 5
SEGMENT = 1 << 15  # elements whose number 16 bits can hold
LEAST_GROUPS = 8  # tried before the row may be sorted instead
MOST_GROUPS = 96  # magnitudes that a row may have left: one takes 0.08 us in a row of 4,096, sorting all of it 14 us
MANY = 96  # the inverse of the share of a row that makes equal elements many: 40 is no better, four elements 10% slower
RADIX_BITS = 11
BELOW = (1 << LOW_BITS) - 1
FETCHES = 4  # of the next row, while one is decided: see tile_kernels.fetch_next
ALL_BITS, BITS_TO_HIGHEST = (1 << 64) - 1, 0x0102040810204080  # of a word


@jit
def rank_mask(
    x: Any,
    base: Any,
    has_base: Any,
    limits: Any,
    key: Any,
    first: Any,
    values: Any,
    bits: Any,
    kept: Any,
    out: Any,
) -> None:
    """A bit of 1 where an element's random bits lie below the limit of its place in its row, from the largest down.

    Equal magnitudes take their places in index order. `values` is scratch of one row, `bits` the same memory as
    unsigned integers; `kept` is scratch of a byte for each element, in whole words. Limits are monotone, so the highest
    16 random bits of most elements lie below or above those of all places that the elements of the same bucket take.
    What is left is settled by its place, equal magnitudes together; where they are too many, the row is sorted. The
    other random bits are drawn only where the highest equal the limit's.
    """
    row_length = limits.size
    if row_length == 0:
        return
    word_memory = aligned(row_length // 4 + 2, np.uint64)
    open_memory = aligned(-(-row_length // 64) * 8, np.uint64)
    short_memory = aligned(2 * row_length + 1, np.uint16)
    place_memory = aligned(row_length + 64, np.uint32)
    left_memory = aligned(2 * row_length + 2, np.uint32)
    halvings = 0
    while halvings < MOST_HALVINGS and (BUCKETS >> halvings) * ELEMENTS > row_length:
        halvings += 1
    table = BUCKETS >> halvings
    count_memory = aligned(4 * table, np.uint16)
    table_memory = aligned(2 * table, np.uint32)
    words, open_words = lent(word_memory), lent(open_memory)
    buckets, tops = lent(short_memory)[:row_length], lent(short_memory)[row_length:]
    places, left, same = lent(place_memory), lent(left_memory)[: row_length + 1], lent(left_memory)[row_length + 1 :]
    counts = lent(count_memory).reshape(4, table)
    totals, bounds = lent(table_memory)[:table], lent(table_memory)[table:]
    order = np.empty((2, row_length), np.uint32)
    keys = np.empty((2, row_length), bits.dtype)
    x, base, limits = lent(x), lent(base), lent(limits)
    values, bits, kept, out = lent(values), lent(bits), lent(kept), lent(out)
    for place in range(row_length):
        tops[place] = limits[place] >> np.uint64(LOW_BITS)
    tops[row_length] = tops[row_length - 1]
    open_words[:] = 0
    for start in range(0, x.size, row_length):
        end = start + row_length
        number = first + np.uint64(start)
        magnitudes(x[start:end], base[start:end], has_base, values)
        mask = kept[start:end]
        _fetch_next(x, base, has_base, end, row_length, 0)
        high = high_bits(key, number, row_length, words)
        _fetch_next(x, base, has_base, end, row_length, 1)
        _set_buckets(bits, halvings, buckets)
        _fetch_next(x, base, has_base, end, row_length, 2)
        _count(buckets, counts, totals)
        _fetch_next(x, base, has_base, end, row_length, 3)
        _set_bounds(totals, tops, bounds)
        _decide_by_bucket(buckets, bounds, high, places[:row_length], open_words.view(np.uint8), mask)
        count = _list_open(open_words, left)
        count = _decide_equals(
            bits, buckets, totals, high, (limits, tops, key, number), left, count, same, open_words, places, mask
        )
        if count > 0:
            _sort(bits, keys, order, places)
            for i in range(count):
                mask[left[i]] = _is_kept(high, left[i], places[left[i]], (limits, tops, key, number))
    kept[x.size :] = 0
    _pack(kept.view(np.uint64), out)
    hold((word_memory, open_memory, short_memory, place_memory, left_memory, count_memory, table_memory))


@inlined
def _fetch_next(x: Any, base: Any, has_base: Any, start: Any, row_length: Any, part: Any) -> None:
    """Fetch a part of the row from `start`, where there is one: see tile_kernels.fetch_next."""
    first = start + row_length * part // FETCHES
    end = min(x.size, start + row_length * (part + 1) // FETCHES)
    fetch(np.uintp(x.ctypes.data), x.itemsize, first, end)
    if has_base:
        fetch(np.uintp(base.ctypes.data), base.itemsize, first, end)


@jit
def _pack(words: Any, out: Any) -> None:
    """Bits of bytes that are 0 or 1: the product moves each byte's to its place in the highest byte."""
    for i in range(words.size):
        out[i] = (words[i] * np.uint64(BITS_TO_HIGHEST)) >> np.uint64(56)


@jit
def _is_kept(high: Any, e: Any, place: Any, draw: Any) -> Any:
    """Whether the random bits of element e lie below the limit of a place."""
    limits, tops, key, first = draw
    if high[e] == tops[place]:
        return low_bits(key, first + np.uint64(e)) < (limits[place] & np.uint64(BELOW))
    return high[e] < tops[place]


@jit
def _set_buckets(bits: Any, halvings: Any, buckets: Any) -> None:
    """Each element's bucket, 0 for the largest magnitudes."""
    dtype = bits.dtype.type
    if bits.itemsize == 4:  # written out: a loop that shifts by a variable makes 64-bit numbers of all
        for j in range(bits.size):
            buckets[j] = bits[j] >> dtype(16)
    else:
        for j in range(bits.size):
            buckets[j] = bits[j] >> dtype(48)
    for _ in range(halvings):
        for j in range(bits.size):
            buckets[j] >>= np.uint16(1)
    top = np.uint16(0)
    for j in range(buckets.size):
        top = max(top, buckets[j])
    last = np.uint16((BUCKETS >> halvings) - 1)
    for j in range(buckets.size):
        buckets[j] = min(np.uint16(top - buckets[j]), last)


@jit
def _count(buckets: Any, counts: Any, totals: Any) -> None:
    """How many elements each bucket holds."""
    totals[:] = 0
    first, second, third, fourth = counts[0], counts[1], counts[2], counts[3]
    for start in range(0, buckets.size, SEGMENT):
        segment = buckets[start : start + SEGMENT]
        counts[:] = 0
        whole = segment.size // 4 * 4
        for j in range(0, whole, 4):  # in turn: an increment waits for the last of its counter
            first[segment[j]] += np.uint16(1)
            second[segment[j + 1]] += np.uint16(1)
            third[segment[j + 2]] += np.uint16(1)
            fourth[segment[j + 3]] += np.uint16(1)
        for j in range(whole, segment.size):
            first[segment[j]] += np.uint16(1)
        for b in range(totals.size):
            totals[b] += np.uint32(first[b]) + np.uint32(second[b]) + np.uint32(third[b]) + np.uint32(fourth[b])


@jit
def _set_bounds(totals: Any, tops: Any, bounds: Any) -> None:
    """The highest limit bits of each bucket's first place, in the lower half, and of the place after its last."""
    place, bound = np.uint32(0), np.uint32(tops[0])
    for bucket in range(totals.size):
        place = np.uint32(place + totals[bucket])
        after = np.uint32(tops[place])
        bounds[bucket] = after << np.uint32(16) | bound
        bound = after


@jit
def _decide_by_bucket(buckets: Any, bounds: Any, high: Any, own: Any, is_open: Any, mask: Any) -> None:
    """Settle the elements whose highest random bits lie outside the bounds of their bucket."""
    for j in range(mask.size):  # apart: a loop that looks up is no vector, and deciding in it took twice as long
        own[j] = bounds[buckets[j]]
    limits = own.view(np.uint16)
    for j in range(mask.size):
        low, top = min(limits[2 * j], limits[2 * j + 1]), max(limits[2 * j], limits[2 * j + 1])
        mask[j] = high[j] < low
        is_open[j] = np.uint16(high[j] - low) <= np.uint16(top - low)  # below `low` it wraps


@jit
def _list_open(open_words: Any, left: Any) -> Any:
    """Which elements are open, eight of which share a word; returns how many. Most runs of eight words have none."""
    count = np.uint32(0)
    is_open = open_words.view(np.uint8)
    for first in range(0, open_words.size, 8):
        found = np.uint64(0)
        for i in range(8):
            found |= open_words[first + i]
        if found != 0:
            for j in range(8 * first, 8 * first + 64):
                left[count] = j
                count += np.uint32(is_open[j])
    return count


@jit
def _decide_equals(
    bits: Any,
    buckets: Any,
    totals: Any,
    high: Any,
    draw: Any,
    left: Any,
    count: Any,
    same: Any,
    words: Any,
    places: Any,
    mask: Any,
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
        end = _count_reaching(bits, own, totals, buckets[left[0]])
        equal = _split(bits, own, left[:count], same)
        count = np.uint32(count - equal)
        if equal * MANY < bits.size:
            _decide_by_turn(bits, own, end, high, draw, same[:equal], mask)
        else:
            _set_places(bits, own, end, words, places)
            for i in range(equal):
                mask[same[i]] = _is_kept(high, same[i], _place_of(same[i], words, places), draw)
    return count


@jit
def _count_reaching(bits: Any, own: Any, totals: Any, bucket: Any) -> Any:
    """How many elements are at least as large as one of the bucket: where it is the least there, buckets tell.

    The last bucket holds all small magnitudes.
    """
    low = bits.dtype.type((BUCKETS // totals.size << (bits.itemsize * 8 - 16)) - 1)
    count = np.uint32(0)
    if own == 0 or (own & low == 0 and bucket < totals.size - 1):
        for b in range(np.int64(bucket) + 1):
            count = np.uint32(count + totals[b])
    else:
        for j in range(bits.size):
            count = np.uint32(count + np.uint32(bits[j] >= own))
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
def _decide_by_turn(bits: Any, own: Any, end: Any, high: Any, draw: Any, same: Any, mask: Any) -> None:
    """Settle some elements of one magnitude, whose places end before `end`, by how many equal ones follow each."""
    place, later = np.uint32(end), bits.size
    for i in range(same.size):
        e = same[same.size - 1 - i]
        part = bits[e:later]
        for j in range(part.size):
            place = np.uint32(place - np.uint32(part[j] == own))
        mask[e] = _is_kept(high, e, place, draw)
        later = e


@jit
def _sum_bytes(word: Any) -> Any:
    """Of a word whose bytes add up to less than 256."""
    return np.uint32((word * np.uint64(BYTES_OF_1)) >> np.uint64(56))


@jit
def _set_places(bits: Any, own: Any, end: Any, words: Any, places: Any) -> None:
    """Mark the elements of one magnitude by a byte of 1, and count for each word of eight which place its first takes.

    `end` is the place after the last.
    """
    is_equal = words.view(np.uint8)
    for j in range(bits.size):
        is_equal[j] = bits[j] == own
    place = np.uint32(end)
    for i in range(words.size):
        word = words.size - 1 - i
        place = np.uint32(place - _sum_bytes(words[word]))
        places[word] = place


@jit
def _place_of(e: Any, words: Any, places: Any) -> Any:
    """The place of an element that `_set_places` marked."""
    word = e // np.uint32(8)
    earlier = words[word] & ~(np.uint64(ALL_BITS) << np.uint64(e % np.uint32(8) * np.uint32(8)))
    return np.uint32(places[word] + _sum_bytes(earlier))


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
