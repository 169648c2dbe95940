"""Numba kernels over rows (vectors along the last dimension), and over single elements of few methods."""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from math import exp, log, sqrt
from typing import Any

from raymerge.compute.jit import carray, jit, pointer  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.kernels import random_bits
from raymerge.compute.operations import PROBABILITY_FLOOR
from raymerge.compute.selection_kernels import magnitudes

RADIX_BITS = 11  # 2048 counters stay in the first-level cache


@jit
def rank_mask(
    x: Any, base: Any, has_base: Any, limits: Any, key: Any, first: Any, values: Any, bits: Any, out: Any
) -> None:
    """1 where an element's random bits lie below the limit of its place among its row's magnitudes, largest first.

    Equal magnitudes take their places in index order. `values` is scratch of one row, `bits` the same memory as
    unsigned integers.
    """
    row_length = limits.size
    order = np.empty(row_length, np.uint32)
    spare_order = np.empty(row_length, np.uint32)
    keys = np.empty(row_length, bits.dtype)
    spare_keys = np.empty(row_length, bits.dtype)
    draws = np.empty(row_length, np.uint64)
    counts = np.empty(1 << RADIX_BITS, np.uint32)
    for start in range(0, out.size, row_length):
        end = start + row_length
        magnitudes(x[start:end], base[start:end], has_base, values)
        for j in range(row_length):
            keys[j] = ~bits[j]
            order[j] = j
        shift = 0
        while shift < keys.itemsize * 8 - 1:
            if _sort_by_digit(keys, order, spare_keys, spare_order, counts, shift):
                keys, spare_keys = spare_keys, keys
                order, spare_order = spare_order, order
            shift += RADIX_BITS
        random_bits(key, first + np.uint64(start), draws)
        mask = out[start : start + row_length]
        for place in range(row_length):
            e = order[place]
            mask[e] = draws[e] < limits[place]


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


@jit
def row_divergences(x: Any, base: Any, row_length: Any, out: Any) -> None:
    """Store out[r] = sum p log(p / q) over row r, p and q the softmax of x and base, each plus a floor."""
    for r in range(out.size):
        first, last = r * row_length, (r + 1) * row_length
        x_top, x_total = _softmax_terms(x, first, last)
        b_top, b_total = _softmax_terms(base, first, last)
        divergence = 0.0
        for e in range(first, last):
            p = exp(np.float64(x[e]) - x_top) / x_total + PROBABILITY_FLOOR
            q = exp(np.float64(base[e]) - b_top) / b_total + PROBABILITY_FLOOR
            divergence += p * log(p / q)
        out[r] = divergence


@jit
def _softmax_terms(values: Any, first: Any, last: Any) -> Any:
    """The largest value of a row, and the sum of exp(value - largest)."""
    top = -np.inf
    for e in range(first, last):
        top = max(top, np.float64(values[e]))
    total = 0.0
    for e in range(first, last):
        total += exp(np.float64(values[e]) - top)
    return top, total


@jit
def row_scaled_magnitudes(x: Any, base: Any, factors: Any, row_length: Any, out: Any) -> None:
    for r in range(factors.size):
        for e in range(r * row_length, (r + 1) * row_length):
            out[e] = abs(np.float64(x[e]) - np.float64(base[e])) * factors[r]


@jit
def spread(addresses: Any, out: Any) -> None:
    """The standard deviation of each element over the inputs; exactly 0 where they are equal."""
    count = addresses.size
    first = carray(pointer(addresses[0], out), (out.size,))
    mean = np.zeros(out.size, np.float64)
    total = np.zeros(out.size, np.float64)
    for k in range(count):
        x = carray(pointer(addresses[k], out), (out.size,))
        for j in range(out.size):
            mean[j] += (np.float64(x[j]) - np.float64(first[j])) / count
    for k in range(count):
        x = carray(pointer(addresses[k], out), (out.size,))
        for j in range(out.size):
            e = (np.float64(x[j]) - np.float64(first[j])) - mean[j]
            total[j] += e * e
    for j in range(out.size):
        out[j] = sqrt(total[j] / count)


@jit
def step_towards(x: Any, base: Any, step: Any, floor: Any, out: Any) -> None:
    """Store out = base + clip(step / max(|x - base|, floor), 0, 1) (x - base)."""
    for j in range(out.size):
        b = np.float64(base[j])
        d = np.float64(x[j]) - b
        share = step / max(abs(d), floor)
        share = min(max(share, 0.0), 1.0)
        out[j] = b + share * d


@jit
def active_counts(addresses: Any, base: Any, epsilon: Any, shared: Any, unique: Any) -> None:
    """Add, per input, the elements where it and another one, or it alone, differ from the base by over epsilon."""
    active = np.zeros(base.size, np.int32)
    for k in range(addresses.size):
        x = carray(pointer(addresses[k], base), (base.size,))
        for j in range(base.size):
            d = np.float64(x[j]) - np.float64(base[j])
            active[j] += np.int32(not abs(d) <= epsilon)
    for k in range(addresses.size):
        x = carray(pointer(addresses[k], base), (base.size,))
        shared_count: Any = 0
        unique_count: Any = 0
        for j in range(base.size):
            is_active = not abs(np.float64(x[j]) - np.float64(base[j])) <= epsilon
            shared_count += np.int64(is_active & (active[j] > 1))
            unique_count += np.int64(is_active & (active[j] == 1))
        shared[k] += shared_count
        unique[k] += unique_count


@jit
def active_mean(addresses: Any, base: Any, epsilon: Any, gains: Any, out: Any) -> None:
    """Store base + the mean of the changes over epsilon; one that is alone is multiplied by its gain."""
    n = base.size
    total = np.zeros(n, np.float64)
    gain = np.zeros(n, np.float64)
    active = np.zeros(n, np.int32)
    for k in range(addresses.size):
        x = carray(pointer(addresses[k], base), (n,))
        for j in range(n):
            d = np.float64(x[j]) - np.float64(base[j])
            is_active = not abs(d) <= epsilon
            total[j] += d if is_active else 0.0
            gain[j] = gains[k] if is_active else gain[j]
            active[j] += np.int32(is_active)
    for j in range(n):
        mean = total[j] * gain[j] if active[j] == 1 else total[j] / max(active[j], 1)
        out[j] = np.float64(base[j]) + mean
