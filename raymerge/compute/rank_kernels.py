"""The numba kernel that keeps elements by their random bits and their place in their row."""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import aligned, hold, inlined, jit, lent, shifted  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.place_kernels import decide_equals, decide_pure, decide_sorted
from raymerge.compute.random_bits import LOW_BITS
from raymerge.compute.random_kernels import high_bits
from raymerge.compute.selection_kernels import magnitudes
from raymerge.compute.sum_kernels import norms_of
from raymerge.compute.sums import LANES
from raymerge.compute.tile_kernels import fetch, pack

BUCKETS = 1024  # of the highest 16 bits below the largest element's: 8 powers of 2
ELEMENTS = 6  # in a bucket: shorter rows join two, and these again; in rows of 700, all 1024 took a quarter longer
MOST_HALVINGS = 5
STREAMS = 4  # that are counted in turn, since an increment waits for the last of its counter
SEGMENT = 2048  # most elements that are counted apart, so that few are looked through for those of one bucket
FETCHES = 4  # of the next row, while one is decided: see tile_kernels.fetch_next


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
    norms: Any,
) -> None:
    """A bit of 1 where an element's random bits lie below the limit of its place in its row, from the largest down.

    Equal magnitudes take their places in index order. `values` is scratch of one row, `bits` the same memory as
    unsigned integers; `kept` is scratch of a byte for each element, in whole words. Limits are monotone, so the highest
    16 random bits of most elements lie below or above those of all places that the elements of the same bucket take.
    What is left is settled by its place: by how many of its bucket come before it where that holds equal elements
    alone, else equal magnitudes together; where these are too many, the row is sorted. The other random bits are drawn
    only where the highest equal the limit's. `norms`, unless empty, takes for each row what chunk_norms would find:
    here its magnitudes are at hand; to make them again took 7% of a DELLA merge.
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
    lane_memory = aligned(2 * LANES, np.float64), aligned(2 * LANES, values.dtype)
    lanes, short = lent(lane_memory[0]).reshape(2, LANES), lent(lane_memory[1])
    x, base, limits = lent(x), lent(base), lent(limits)
    values, bits, kept, out, norms = lent(values), lent(bits), lent(kept), lent(out), lent(norms)
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
        count = decide_pure(buckets, parity, (firsts, totals, counts), segment, high, draw, left, count, mask)
        count = decide_equals(bits, high, draw, left, count, same, open_words, places, mask)
        decide_sorted(bits, high, draw, left[:count], places, mask)
        if norms.size > 0:
            norms_of(values, mask, lanes, short, norms[start // row_length])
    kept[x.size :] = 0
    pack(kept.view(np.uint64), out)
    hold((word_memory, open_memory, short_memory, place_memory, left_memory, count_memory, table_memory, lane_memory))


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
def _set_buckets(bits: Any, halvings: Any, on_grid: Any, buckets: Any) -> Any:
    """Each element's bucket, 0 for the largest magnitudes.

    Differences of codes are few multiples of a step: with `on_grid` buckets come in pairs, one for the least magnitude
    alone and one for what lies above it. Returns 0 where even buckets, but for the last, are such of equal elements, 1
    where odd ones are, 2 where none is known to be.
    """
    dtype = bits.dtype.type
    shift = bits.itemsize * 8 - 16 + halvings
    if on_grid:
        by, below = dtype(shift + 1), dtype((1 << (shift + 1)) - 1)
        for j in range(bits.size):
            buckets[j] = shifted(bits[j], by) << dtype(1) | dtype((bits[j] & below) != 0)
    else:
        by = dtype(shift)
        for j in range(bits.size):
            buckets[j] = shifted(bits[j], by)
    top = np.uint16(0)
    for j in range(buckets.size):
        top = max(top, buckets[j])
    last = np.uint16((BUCKETS >> halvings) - 1)
    for j in range(buckets.size):
        buckets[j] = min(np.uint16(top - buckets[j]), last)
    return top & np.uint16(1) if on_grid else np.uint16(2)


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
