"""Numba kernels over rows (vectors along the last dimension), and over single elements of few methods."""

from __future__ import annotations

from math import exp, log, sqrt
from typing import Any

from raymerge.compute.jit import carray, jit, pointer  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.operations import PROBABILITY_FLOOR


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
