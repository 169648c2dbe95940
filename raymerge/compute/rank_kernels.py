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
STREAMS = 4  # that are counted in turn, since an increment waits for the last of its counter
SEGMENT = 2048  # most elements that are counted apart, so that few are looked through for those of one bucket
HEAVY = 8  # the inverse of the share of a row above which equal elements are too many to look for each one's place
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
    What is left is settled by its place: by how many of its bucket come before it where that holds equal elements
    alone, else equal magnitudes together; where these are too many, the row is sorted. The other random bits are drawn
    only where the highest equal the limit's.
    """
    row_length = limits.size
    if row_length == 0:
        return
    word_memory = aligned(row_length // 4 + 2, np.uint64)
    open_memory = aligned(-(-row_length // 64) * 8, np.uint64)
    short_memory = aligned(2 * row_length + 1, np.uint16)
    place_memory = aligned(row_length + 64, np.uint32)
    left_memory = aligned(2 * row_length + 2, np.uint32)
    parts = STREAMS * -(-row_length // (STREAMS * SEGMENT))
    segment = -(-row_length // parts)
    on_grid = x.itemsize == 2 and (base.itemsize == 2 or not has_base)
    halvings = _count_halvings(row_length)
    table = BUCKETS >> halvings
    count_memory = aligned(parts * table, np.uint32)
    table_memory = aligned(3 * table, np.uint32)
    words, open_words = lent(word_memory), lent(open_memory)
    buckets, tops = lent(short_memory)[:row_length], lent(short_memory)[row_length:]
    places, left, same = lent(place_memory), lent(left_memory)[: row_length + 1], lent(left_memory)[row_length + 1 :]
    counts = lent(count_memory).reshape(parts, table)
    totals, bounds = lent(table_memory)[:table], lent(table_memory)[table : 2 * table]
    firsts = lent(table_memory)[2 * table :]
    order = np.empty((2, row_length), np.uint32)
    keys = np.empty((2, row_length), bits.dtype)
    x, base, limits = lent(x), lent(base), lent(limits)
    values, bits, kept, out = lent(values), lent(bits), lent(kept), lent(out)
    _set_tops(limits, tops)
    open_words[:] = 0
    for start in range(0, x.size, row_length):
        end = start + row_length
        number = first + np.uint64(start)
        magnitudes(x[start:end], base[start:end], has_base, values)
        mask = kept[start:end]
        _fetch_next(x, base, has_base, end, row_length, 0)
        high = high_bits(key, number, row_length, words)
        _fetch_next(x, base, has_base, end, row_length, 1)
        parity = _set_buckets(bits, halvings, on_grid, buckets)
        _fetch_next(x, base, has_base, end, row_length, 2)
        _count(buckets, segment, counts, totals)
        _fetch_next(x, base, has_base, end, row_length, 3)
        _set_bounds(totals, tops, firsts, bounds)
        _decide_by_bucket(buckets, bounds, high, places[:row_length], open_words.view(np.uint8), mask)
        draw = (limits, tops, key, number)
        count = _list_open(open_words, same, left)
        count = _decide_pure(buckets, parity, (firsts, totals, counts), segment, high, draw, left, count, mask)
        count = _decide_equals(bits, high, draw, left, count, same, open_words, places, mask)
        if count > 0:
            _sort(bits, keys, order, places)
            for i in range(count):
                mask[left[i]] = _is_kept(high, left[i], places[left[i]], draw)
    kept[x.size :] = 0
    _pack(kept.view(np.uint64), out)
    hold((word_memory, open_memory, short_memory, place_memory, left_memory, count_memory, table_memory))


@jit
def _count_halvings(row_length: Any) -> Any:
    """How often buckets are joined in twos."""
    halvings = 0
    while halvings < MOST_HALVINGS and (BUCKETS >> halvings) * ELEMENTS > row_length:
        halvings += 1
    return halvings


@jit
def _set_tops(limits: Any, tops: Any) -> None:
    """The highest bits of every place's limit, and those of the last once more."""
    for place in range(limits.size):
        tops[place] = limits[place] >> np.uint64(LOW_BITS)
    tops[limits.size] = tops[limits.size - 1]


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
def _set_buckets(bits: Any, halvings: Any, on_grid: Any, buckets: Any) -> Any:
    """Each element's bucket, 0 for the largest magnitudes.

    Differences of codes are few multiples of a step: with `on_grid` buckets come in pairs, one for the least magnitude
    alone and one for what lies above it. Returns 0 where even buckets, but for the last, are such of equal elements, 1
    where odd ones are, 2 where none is known to be.
    """
    _set_highest(bits, buckets)
    if on_grid:
        _halve_in_pairs(bits, halvings, buckets)
    else:
        for _ in range(halvings):
            for j in range(bits.size):
                buckets[j] >>= np.uint16(1)
    top = np.uint16(0)
    for j in range(buckets.size):
        top = max(top, buckets[j])
    last = np.uint16((BUCKETS >> halvings) - 1)
    for j in range(buckets.size):
        buckets[j] = min(np.uint16(top - buckets[j]), last)
    return top & np.uint16(1) if on_grid else np.uint16(2)


@jit
def _set_highest(bits: Any, buckets: Any) -> None:
    dtype = bits.dtype.type
    if bits.itemsize == 4:  # written out: a loop that shifts by a variable makes 64-bit numbers of all
        for j in range(bits.size):
            buckets[j] = bits[j] >> dtype(16)
    else:
        for j in range(bits.size):
            buckets[j] = bits[j] >> dtype(48)


@jit
def _halve_in_pairs(bits: Any, halvings: Any, buckets: Any) -> None:
    """The lowest bit says from then on whether it or any that is left out was set."""
    dtype = bits.dtype.type
    below = dtype((1 << (bits.itemsize * 8 - 16)) - 1)
    for j in range(bits.size):
        buckets[j] |= np.uint16((bits[j] & below) != 0)
    for _ in range(halvings):
        for j in range(bits.size):
            buckets[j] = buckets[j] >> np.uint16(1) | (buckets[j] & np.uint16(1))


@jit
def _count(buckets: Any, segment: Any, counts: Any, totals: Any) -> None:
    """How many elements each bucket holds: in all, and before each segment of the row."""
    counts[:] = 0
    for part in range(0, counts.shape[0], STREAMS):
        start = part * segment
        whole = min(segment, max(0, buckets.size - start - 3 * segment))
        # Each its own array: an index that is a sum is checked for being negative.
        first, second = buckets[start : start + whole], buckets[start + segment :]
        third, fourth = buckets[start + 2 * segment :], buckets[start + 3 * segment :]
        in_first, in_second, in_third, in_fourth = counts[part], counts[part + 1], counts[part + 2], counts[part + 3]
        for j in range(whole):
            in_first[first[j]] += np.uint32(1)
            in_second[second[j]] += np.uint32(1)
            in_third[third[j]] += np.uint32(1)
            in_fourth[fourth[j]] += np.uint32(1)
        for stream in range(STREAMS):
            begin = start + stream * segment
            for j in range(begin + whole, min(begin + segment, buckets.size)):
                counts[part + stream, buckets[j]] += np.uint32(1)
    totals[:] = 0
    for part in range(counts.shape[0]):
        own = counts[part]
        for b in range(totals.size):
            here = own[b]
            own[b] = totals[b]
            totals[b] += here


@jit
def _set_bounds(totals: Any, tops: Any, firsts: Any, bounds: Any) -> None:
    """The highest limit bits of each bucket's first place, in the lower half, and of the place after its last."""
    place, bound = np.uint32(0), np.uint32(tops[0])
    for bucket in range(totals.size):
        firsts[bucket] = place
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
def _list_open(open_words: Any, listed: Any, left: Any) -> Any:
    """Which elements are open, eight of which share a word; returns how many. Most words have none: these are `listed`.

    Without branches, which would be foreseen badly.
    """
    words = np.uint32(0)
    for i in range(open_words.size):
        listed[words] = i
        words += np.uint32(open_words[i] != 0)
    count = np.uint32(0)
    is_open = open_words.view(np.uint8)
    for i in range(words):
        first = listed[i] * np.uint32(8)
        for j in range(first, first + np.uint32(8)):
            left[count] = j
            count += np.uint32(is_open[j])
    return count


@jit
def _decide_pure(
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
        mask[e] = _is_kept(high, e, place, draw)
    return others


@jit
def _decide_equals(
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
                mask[same[i]] = _is_kept(high, same[i], _place_of(same[i], words, places), draw)
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
    mask[same[0]] = _is_kept(high, same[0], place, draw)
    for i in range(1, same.size):
        between = bits[same[i - 1] : same[i]]
        for j in range(between.size):
            place = np.uint32(place + np.uint32(between[j] == own))
        mask[same[i]] = _is_kept(high, same[i], place, draw)


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
