"""Numba kernels that find and mark the largest magnitudes |x - base|, over blocks of floats or of bfloat16 codes.

`values` is scratch of TILE elements of the blocks' float type, `bits` the same memory as unsigned integers.
"""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import TILE, aligned, element, inlined, jit  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.tile_kernels import fetch


@jit
def magnitudes(x: Any, base: Any, has_base: Any, out: Any) -> None:
    if has_base:
        for j in range(out.size):
            out[j] = abs(element(x, j) - element(base, j))
    else:
        for j in range(out.size):
            out[j] = abs(element(x, j))


@jit
def top_mask(x: Any, base: Any, has_base: Any, threshold: Any, cut: Any, values: Any, out: Any) -> None:
    """1 where |x - base| exceeds the threshold, or equals it at an index below `cut`. NaN counts as large."""
    for start in range(0, out.size, TILE):
        end = min(start + TILE, out.size)
        magnitude = values[: end - start]
        magnitudes(x[start:end], base[start:end], has_base, magnitude)
        mask = out[start:end]
        if end <= cut:
            for j in range(mask.size):
                mask[j] = not magnitude[j] < threshold
        else:
            for j in range(mask.size):
                mask[j] = not magnitude[j] <= threshold
            for j in range(max(0, cut - start)):
                mask[j] = not magnitude[j] < threshold


@jit
def count_equal(x: Any, base: Any, has_base: Any, threshold: Any) -> Any:
    """How many |x - base| equal the threshold."""
    count: Any = 0
    for start in range(0, x.size, TILE):
        end = min(start + TILE, x.size)
        if has_base:
            count += _count_equal_changes(x[start:end], base[start:end], threshold)
        else:
            count += _count_equal_values(x[start:end], threshold)
    return count


@inlined
def _count_equal_changes(x: Any, base: Any, threshold: Any) -> Any:
    found = np.int32(0)  # and again below: a sum of two is 64 bits wide, and the loop took 0.21 ns for 0.10
    for j in range(x.size):
        found = np.int32(found + np.int32(abs(element(x, j) - element(base, j)) == threshold))
    return found


@inlined
def _count_equal_values(x: Any, threshold: Any) -> Any:
    found = np.int32(0)
    for j in range(x.size):
        found = np.int32(found + np.int32(abs(element(x, j)) == threshold))
    return found


@jit
def index_after_equals(x: Any, base: Any, has_base: Any, threshold: Any, wanted: Any) -> Any:
    """The index just after the `wanted`-th element whose magnitude equals the threshold."""
    count: Any = 0
    for j in range(x.size):
        a = abs(element(x, j) - element(base, j)) if has_base else abs(element(x, j))
        count += np.int64(a == threshold)
        if count == wanted:
            return j + 1
    return x.size


@jit
def histogram_high(x: Any, base: Any, has_base: Any, bits: Any, values: Any, shift: Any, out: Any) -> Any:
    """Count |x - base|'s bits >> shift; returns how many elements have bits below `shift`."""
    by = bits.dtype.type(shift)
    below = bits.dtype.type((1 << shift) - 1)
    fine: Any = 0
    for start in range(0, x.size, TILE):
        m = min(TILE, x.size - start)
        magnitudes(x[start : start + m], base[start : start + m], has_base, values[:m])
        found = np.int32(0)
        for j in range(m):
            found = np.int32(found + np.int32((bits[j] & below) != 0))
        fine += found
        for j in range(m):
            out[bits[j] >> by] += 1
    return fine


@jit
def histogram_window(x: Any, base: Any, has_base: Any, bits: Any, values: Any, low: Any, shift: Any, out: Any) -> Any:
    """Count (|x - base|'s bits - low) >> shift in the table, and what lies above it in the table's last entry.

    Returns how many elements in the table are not at the first pattern of their entry. Few should fall into the table:
    groups of eight that have one are listed first, then those elements, without a branch to predict.
    """
    bins = out.size - 1
    inside, groups, found = aligned(TILE, np.uint8), aligned(TILE // 8, np.uint32), aligned(TILE, bits.dtype)
    any_inside = inside.view(np.uint64)
    first = bits.dtype.type(low)
    by = bits.dtype.type(shift)
    last = bits.dtype.type(low + ((bins << shift) - 1))
    width = bits.dtype.type(bins << shift)
    below = bits.dtype.type((1 << shift) - 1)
    above = np.int64(0)
    fine: Any = 0
    for start in range(0, x.size, TILE):
        end = min(start + TILE, x.size)
        m = end - start
        magnitudes(x[start:end], base[start:end], has_base, values[:m])
        after = min(end + TILE, x.size)  # fetched in two parts: see tile_kernels.fetch_next
        fetch(np.uintp(x.ctypes.data), x.itemsize, end, after)
        over = np.int32(0)
        for j in range(m):
            over = np.int32(over + np.int32(bits[j] > last))
            bits[j] -= first
        above += over
        if has_base:
            fetch(np.uintp(base.ctypes.data), base.itemsize, end, after)
        for j in range(m):
            inside[j] = bits[j] < width
        inside[m : -(-m // 8) * 8] = 0
        listed = np.uint32(0)  # unsigned: a signed index would be checked for being negative
        for g in range(-(-m // 8)):
            groups[listed] = 8 * g
            listed += np.uint32(any_inside[g] != 0)
        kept = np.uint32(0)
        for i in range(listed):
            for j in range(groups[i], groups[i] + np.uint32(8)):
                found[kept] = bits[j]
                kept += np.uint32(inside[j])
        for j in range(kept):
            out[found[j] >> by] += 1
            fine += np.int64((found[j] & below) != 0)
    out[bins] += above
    return fine
