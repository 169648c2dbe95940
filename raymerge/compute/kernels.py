"""Numba kernels over blocks: no state, no threads of their own, the GIL released, IEEE arithmetic as written.

Kernels over several inputs take the addresses of their arrays, so that one compilation serves any number of inputs,
and work through tiles that stay in the first-level cache: the loop over inputs outside, elements inside, which the
compiler turns into vector code. (Indexing inputs inside the element loop ran 10 times slower.)
"""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import carray, jit, pointer  # first: it settles numba's cache folder  # isort: skip

import numpy as np

from raymerge.compute.operations import VOTE_ROUNDING
from raymerge.compute.random_bits import GOLDEN, MIX_1, MIX_2
from raymerge.compute.sums import LANES

TILE = 1024


@jit
def decode_bf16(raw: Any, out: Any) -> None:
    for j in range(out.size):
        out[j] = np.uint32(raw[j]) << np.uint32(16)


@jit
def encode_bf16(bits: Any, out: Any) -> Any:
    """float32 bits to bfloat16 bits, to nearest even; NaN becomes the quiet NaN 0x7fc0, as in torch."""
    bad: Any = 0
    for j in range(out.size):
        b = bits[j]
        rounded = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        is_nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        code = np.uint32(0x7FC0) if is_nan else rounded
        bad += np.int32((code & np.uint32(0x7F80)) == np.uint32(0x7F80))
        out[j] = np.uint16(code)
    return bad


@jit
def narrow_to_odd(values: Any, out: Any, out_bits: Any) -> None:
    """float64 to float32, inexact results to the odd neighbour: rounding those again, to 16 bits, rounds once."""
    for j in range(values.size):
        value = values[j]
        near = np.float32(value)
        out[j] = near
        back = np.float64(near)
        if back != value and not np.isnan(value):
            bits = out_bits[j]
            if abs(back) > abs(value):
                bits -= np.uint32(1)
            out_bits[j] = bits | np.uint32(1)


@jit
def count_nonfinite(values: Any) -> Any:
    bad: Any = 0
    for j in range(values.size):
        bad += np.int64(not (abs(values[j]) < np.inf))
    return bad


@jit
def subtract(x: Any, base: Any, out: Any) -> None:
    for j in range(out.size):
        out[j] = x[j] - base[j]


@jit
def weighted_sum(addresses: Any, coefficients: Any, out: Any) -> None:
    """Store sum c_k a_k, accumulated in float64 in the order of the inputs, rounded once."""
    total = np.empty(TILE, np.float64)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        for k in range(addresses.size):
            a = carray(pointer(addresses[k], out), (out.size,))[start : start + m]
            c = coefficients[k]
            if k == 0:
                for j in range(m):
                    total[j] = c * np.float64(a[j])
            else:
                for j in range(m):
                    total[j] += c * np.float64(a[j])
        for j in range(m):
            out[start + j] = total[j]


@jit
def magnitudes(x: Any, base: Any, has_base: Any, out: Any) -> None:
    for j in range(out.size):
        out[j] = abs(x[j] - base[j]) if has_base else abs(x[j])


@jit
def top_mask(x: Any, base: Any, has_base: Any, threshold: Any, cut: Any, out: Any) -> None:
    """1 where |x - base| exceeds the threshold, or equals it at an index below `cut`. NaN counts as large."""
    for j in range(out.size):
        a = abs(x[j] - base[j]) if has_base else abs(x[j])
        out[j] = np.uint8((not a <= threshold) | ((a == threshold) & (j < cut)))


@jit
def count_equal(x: Any, base: Any, has_base: Any, threshold: Any) -> Any:
    count: Any = 0
    for j in range(x.size):
        a = abs(x[j] - base[j]) if has_base else abs(x[j])
        count += np.int32(a == threshold)
    return count


@jit
def index_after_equals(x: Any, base: Any, has_base: Any, threshold: Any, wanted: Any) -> Any:
    """The index just after the `wanted`-th element whose magnitude equals the threshold."""
    count: Any = 0
    for j in range(x.size):
        a = abs(x[j] - base[j]) if has_base else abs(x[j])
        if a == threshold:
            count += 1
            if count == wanted:
                return j + 1
    return x.size


@jit
def _fill_terms(
    terms: Any, address: Any, mask_address: Any, coefficient: Any, base: Any, has_base: Any, start: Any, out: Any
) -> None:
    """Store coefficient * (x - base) where the mask is set, else 0, for one tile; mask address 0: set everywhere."""
    m = terms.size
    x = carray(pointer(address, out), (out.size,))[start : start + m]
    if has_base:
        b = base[start : start + m]
        for j in range(m):
            terms[j] = coefficient * (np.float64(x[j]) - np.float64(b[j]))
    else:
        for j in range(m):
            terms[j] = coefficient * np.float64(x[j])
    if mask_address != 0:
        mask = carray(pointer(mask_address, np.empty(0, np.uint8)), (out.size,))[start : start + m]
        for j in range(m):
            terms[j] = terms[j] if mask[j] != 0 else 0.0


@jit
def masked_sum(addresses: Any, masks: Any, coefficients: Any, base: Any, has_base: Any, factor: Any, out: Any) -> None:
    """Store base + factor * sum c_k m_k (x_k - base) in float64, rounded once; without a base it counts as 0."""
    total = np.empty(TILE, np.float64)
    terms = np.empty(TILE, np.float64)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        total[:m] = 0.0
        for k in range(addresses.size):
            _fill_terms(terms[:m], addresses[k], masks[k], coefficients[k], base, has_base, start, out)
            for j in range(m):
                total[j] += terms[j]
        _finish(total[:m], factor, base, has_base, start, out)


@jit
def _finish(total: Any, factor: Any, base: Any, has_base: Any, start: Any, out: Any) -> None:
    m = total.size
    if has_base:
        b = base[start : start + m]
        for j in range(m):
            out[start + j] = np.float64(b[j]) + factor * total[j]
    else:
        for j in range(m):
            out[start + j] = factor * total[j]


@jit
def elect(
    addresses: Any,
    masks: Any,
    coefficients: Any,
    gains: Any,
    weights: Any,
    base: Any,
    has_base: Any,
    factor: Any,
    divide: Any,
    count_votes: Any,
    tiny: Any,
    out: Any,
) -> None:
    """The TIES election: out = base + factor * mean of the votes c_k m_k (x_k - base) whose sign their sum has.

    All in float64, rounded once. A sum that is 0 but for rounding elects +, whatever the order of the inputs; a vote of
    0 agrees with neither sign. The agreeing votes are added, each times its gain; with `divide` the sum is divided by
    the sum of their weights, where that is larger than `tiny`.
    """
    count = addresses.size
    terms = np.empty((count, TILE), np.float64)
    votes = np.empty(TILE, np.float64)
    share = np.empty(TILE, np.float64)  # first of the votes' magnitudes, then of the weights
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        votes[:m] = 0.0
        share[:m] = 0.0
        for k in range(count):
            row = terms[k, :m]
            _fill_terms(row, addresses[k], masks[k], coefficients[k], base, has_base, start, out)
            if count_votes:
                for j in range(m):
                    votes[j] += np.float64(row[j] > 0.0) - np.float64(row[j] < 0.0)
            else:
                for j in range(m):
                    votes[j] += row[j]
                    share[j] += abs(row[j])
        _agree(terms, gains, weights, votes, share, m, divide, tiny)
        _finish(votes[:m], factor, base, has_base, start, out)


@jit
def _agree(terms: Any, gains: Any, weights: Any, votes: Any, share: Any, m: Any, divide: Any, tiny: Any) -> None:
    """Replace each vote by the sum, or the mean, of the terms of its sign."""
    positive = np.empty(TILE, np.bool_)
    for j in range(m):
        positive[j] = not votes[j] < share[j] * -VOTE_ROUNDING
        votes[j] = 0.0
        share[j] = 0.0
    for k in range(terms.shape[0]):
        row = terms[k, :m]
        gain, w = gains[k], weights[k]
        for j in range(m):
            agrees = (row[j] > 0.0) if positive[j] else (row[j] < 0.0)
            agrees |= np.isnan(row[j])
            votes[j] += gain * row[j] if agrees else 0.0
            share[j] += w if agrees else 0.0
    if divide:
        for j in range(m):
            votes[j] /= share[j] if abs(share[j]) > tiny else 1.0


@jit
def histogram_digit(
    x: Any, base: Any, has_base: Any, bits: Any, values: Any, shift: Any, prefix: Any, out: Any
) -> None:
    """Count the 16-bit digit at `shift` of the magnitude bits of x - base, where the digits above it equal `prefix`.

    `values` is scratch of TILE elements and `bits` the same memory as unsigned integers.
    """
    n = x.size
    for start in range(0, n, TILE):
        m = min(TILE, n - start)
        if has_base:
            for j in range(m):
                values[j] = abs(x[start + j] - base[start + j])
        else:
            for j in range(m):
                values[j] = abs(x[start + j])
        for j in range(m):
            magnitude = np.int64(bits[j])
            if (magnitude >> shift) >> 16 == prefix:
                out[(magnitude >> shift) & 0xFFFF] += 1


@jit
def histogram_high(x: Any, base: Any, has_base: Any, bits: Any, values: Any, shift: Any, out: Any) -> None:
    """As histogram_digit for the highest digit, where nothing lies above."""
    n = x.size
    for start in range(0, n, TILE):
        m = min(TILE, n - start)
        if has_base:
            for j in range(m):
                values[j] = abs(x[start + j] - base[start + j])
        else:
            for j in range(m):
                values[j] = abs(x[start + j])
        for j in range(m):
            out[bits[j] >> shift] += 1


@jit
def chunk_dots(a: Any, b: Any, base: Any, has_base: Any, chunk: Any, out: Any) -> None:
    """Store out[i] = sum of (a - base) * (b - base) over the i-th chunk, in float64: 64 lanes, then those pairwise."""
    lanes = np.empty(LANES, np.float64)
    n = a.size
    for i in range(out.size):
        lanes[:] = 0.0
        first = i * chunk
        last = min(n, first + chunk)
        whole = first + (last - first) // LANES * LANES
        for start in range(first, whole, LANES):
            for j in range(LANES):
                if has_base:
                    c = np.float64(base[start + j])
                    lanes[j] += (np.float64(a[start + j]) - c) * (np.float64(b[start + j]) - c)
                else:
                    lanes[j] += np.float64(a[start + j]) * np.float64(b[start + j])
        for j in range(last - whole):
            e: Any = np.float64(base[whole + j]) if has_base else 0.0
            lanes[j] += (np.float64(a[whole + j]) - e) * (np.float64(b[whole + j]) - e)
        out[i] = _add_lanes(lanes)


@jit
def _add_lanes(lanes: Any) -> Any:
    half = LANES // 2
    while half > 0:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return float(lanes[0])


@jit
def chunk_sums(x: Any, base: Any, has_base: Any, mask: Any, has_mask: Any, squared: Any, chunk: Any, out: Any) -> None:
    """Store out[i] = sum of abs(x - base), or its square, over the i-th chunk, where the mask is set, in float64."""
    lanes = np.empty(LANES, np.float64)
    n = x.size
    for i in range(out.size):
        lanes[:] = 0.0
        first = i * chunk
        last = min(n, first + chunk)
        for start in range(first, last, LANES):
            for j in range(min(LANES, last - start)):
                e = start + j
                d: Any = np.float64(x[e])
                if has_base:
                    d -= np.float64(base[e])
                if has_mask and mask[e] == 0:
                    d = 0.0
                lanes[j] += d * d if squared else abs(d)
        out[i] = _add_lanes(lanes)


@jit
def random_mask(key: Any, first: Any, low: Any, out: Any) -> None:
    """1 where the random bits of element first + j lie below `low`: the definition is random_bits.element_bits."""
    golden = np.uint64(GOLDEN)
    for j in range(out.size):
        z = key + (first + np.uint64(j) + np.uint64(1)) * golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
        z = z ^ (z >> np.uint64(31))
        out[j] = np.uint8(z < low)
