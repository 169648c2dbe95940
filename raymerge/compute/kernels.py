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
def _aligned(size: Any, dtype: Any) -> Any:
    """Scratch that starts on a cache line: vectors that straddle two made the loops over it a third slower."""
    memory = np.empty(size + 16, dtype)
    start = (64 - memory.ctypes.data % 64) % 64 // memory.itemsize
    return memory[start : start + size]


@jit
def weighted_sum(addresses: Any, coefficients: Any, out: Any) -> None:
    """Store sum c_k a_k, accumulated in float64 in the order of the inputs, rounded once."""
    total = _aligned(TILE, np.float64)
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
        _finish(total[:m], 1.0, out, False, start, out)


@jit
def magnitudes(x: Any, base: Any, has_base: Any, out: Any) -> None:
    if has_base:
        for j in range(out.size):
            out[j] = abs(x[j] - base[j])
    else:
        for j in range(out.size):
            out[j] = abs(x[j])


@jit
def top_mask(x: Any, base: Any, has_base: Any, threshold: Any, cut: Any, out: Any) -> None:
    """1 where |x - base| exceeds the threshold, or equals it at an index below `cut`. NaN counts as large."""
    values = _aligned(TILE, x.dtype)
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
    values = _aligned(TILE, x.dtype)
    count: Any = 0
    for start in range(0, x.size, TILE):
        end = min(start + TILE, x.size)
        magnitude = values[: end - start]
        magnitudes(x[start:end], base[start:end], has_base, magnitude)
        found = np.int32(0)
        for j in range(magnitude.size):
            found += np.int32(magnitude[j] == threshold)
        count += found
    return count


@jit
def index_after_equals(x: Any, base: Any, has_base: Any, threshold: Any, wanted: Any) -> Any:
    """The index just after the `wanted`-th element whose magnitude equals the threshold."""
    count: Any = 0
    for j in range(x.size):
        a = abs(x[j] - base[j]) if has_base else abs(x[j])
        count += np.int64(a == threshold)
        if count == wanted:
            return j + 1
    return x.size


@jit
def _fill_terms(
    terms: Any,
    address: Any,
    mask_address: Any,
    limit: Any,
    coefficient: Any,
    base: Any,
    has_base: Any,
    start: Any,
    out: Any,
) -> None:
    """Store, for one tile, coefficient * (x - base), or 0 where |x - base| < limit or the mask is 0.

    Mask address 0 keeps everything.
    """
    end = start + terms.size
    x = carray(pointer(address, out), (out.size,))[start:end]
    if has_base:
        _fill_deltas(terms, x, base[start:end], limit, coefficient)
    else:
        for j in range(terms.size):
            value = np.float64(x[j])
            terms[j] = 0.0 if abs(value) < limit else coefficient * value
    if mask_address != 0:
        mask = carray(pointer(mask_address, np.empty(0, np.uint8)), (out.size,))[start:end]
        for j in range(terms.size):
            terms[j] = terms[j] if mask[j] != 0 else 0.0


@jit
def _fill_deltas(terms: Any, x: Any, base: Any, limit: Any, coefficient: Any) -> None:
    if limit > 0.0:
        for j in range(terms.size):
            d = np.float64(x[j]) - np.float64(base[j])
            terms[j] = 0.0 if abs(d) < limit else coefficient * d
    else:
        for j in range(terms.size):
            terms[j] = coefficient * (np.float64(x[j]) - np.float64(base[j]))


@jit
def masked_sum(
    addresses: Any, masks: Any, limits: Any, coefficients: Any, base: Any, has_base: Any, factor: Any, out: Any
) -> None:
    """Store base + factor * sum c_k m_k (x_k - base) in float64, rounded once; without a base it counts as 0."""
    total = _aligned(TILE, np.float64)
    terms = _aligned(TILE, np.float64)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        total[:m] = 0.0
        for k in range(addresses.size):
            _fill_terms(terms[:m], addresses[k], masks[k], limits[k], coefficients[k], base, has_base, start, out)
            for j in range(m):
                total[j] += terms[j]
        _finish(total[:m], factor, base, has_base, start, out)


@jit
def _finish(total: Any, factor: Any, base: Any, has_base: Any, start: Any, out: Any) -> None:
    m = total.size
    result = out[start : start + m]
    if has_base:
        b = base[start : start + m]
        for j in range(m):
            result[j] = np.float64(b[j]) + factor * total[j]
    else:
        for j in range(m):
            result[j] = factor * total[j]


@jit
def elect(
    addresses: Any,
    masks: Any,
    limits: Any,
    coefficients: Any,
    gains: Any,
    has_gains: Any,
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

    All in float64, rounded once. A vote of 0 agrees with neither sign; where the votes' sum is what rounding leaves of
    the winning ones, + wins, whatever the order of the inputs. The winning votes are added, each times its gain; with
    `divide` the sum is divided by the sum of their weights, where that is larger than `tiny`.
    """
    count = addresses.size
    terms = _aligned(count * TILE, np.float64)
    scratch = _aligned(4 * TILE, np.float64)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        votes, side = scratch[:m], scratch[TILE : TILE + m]
        total, share = scratch[2 * TILE : 2 * TILE + m], scratch[3 * TILE : 3 * TILE + m]
        votes[:] = 0.0
        for k in range(count):
            row = terms[k * TILE : k * TILE + m]
            _fill_terms(row, addresses[k], masks[k], limits[k], coefficients[k], base, has_base, start, out)
            _add_votes(row, count_votes, votes)
        for j in range(m):
            side[j] = -1.0 if votes[j] < 0.0 else 1.0
        _add_winning(terms, weights, side, total, share)
        if not count_votes and _elect_near_zeros(votes, side, total):
            _add_winning(terms, weights, side, total, share)
        if has_gains:
            _add_gained(terms, gains, side, total)
        least = tiny if divide else np.inf
        result, b = out[start : start + m], base[start : start + m]
        if has_base:
            for j in range(m):  # the division's latency hides behind the other work
                divisor = share[j] if abs(share[j]) > least else 1.0
                result[j] = np.float64(b[j]) + factor * (side[j] * total[j] / divisor)
        else:
            for j in range(m):
                divisor = share[j] if abs(share[j]) > least else 1.0
                result[j] = factor * (side[j] * total[j] / divisor)


@jit
def _add_votes(terms: Any, count_votes: Any, votes: Any) -> None:
    if count_votes:
        for j in range(votes.size):
            votes[j] += np.float64(terms[j] > 0.0) - np.float64(terms[j] < 0.0)
    else:
        for j in range(votes.size):
            votes[j] += terms[j]


@jit
def _add_winning(terms: Any, weights: Any, side: Any, total: Any, share: Any) -> None:
    """Sums over the terms on the elected side: of their magnitudes, NaN included, and of their weights."""
    m = side.size
    first = terms[:m]
    w = weights[0]
    for j in range(m):
        term = first[j] * side[j]
        total[j] = 0.0 if term < 0.0 else term  # noqa: FURB136  max() would drop a NaN
        share[j] = w if term > 0.0 else 0.0
    for k in range(1, weights.size):
        row = terms[k * TILE : k * TILE + m]
        w = weights[k]
        for j in range(m):
            term = row[j] * side[j]
            total[j] += 0.0 if term < 0.0 else term  # noqa: FURB136
            share[j] += w if term > 0.0 else 0.0


@jit
def _add_gained(terms: Any, gains: Any, side: Any, total: Any) -> None:
    m = side.size
    total[:] = 0.0
    for k in range(gains.size):
        row = terms[k * TILE : k * TILE + m]
        for j in range(m):
            term = row[j] * side[j]
            total[j] += 0.0 if term < 0.0 else gains[k] * term


@jit
def _elect_near_zeros(votes: Any, side: Any, total: Any) -> Any:
    """Elect + where votes sum to less than rounding leaves of the winning ones; returns whether that changed any."""
    changed: Any = 0
    for j in range(side.size):
        changed += np.int64((votes[j] < 0.0) & (-votes[j] <= VOTE_ROUNDING * total[j]))
    if changed > 0:
        for j in range(side.size):
            side[j] = 1.0 if -votes[j] <= VOTE_ROUNDING * total[j] else side[j]
    return changed > 0


@jit
def histogram_high(x: Any, base: Any, has_base: Any, bits: Any, values: Any, shift: Any, out: Any) -> Any:
    """Count |x - base|'s bits >> shift; returns how many elements have bits below `shift`.

    `values` is scratch of TILE elements and `bits` the same memory as unsigned integers.
    """
    by = bits.dtype.type(shift)
    below = bits.dtype.type((1 << shift) - 1)
    fine: Any = 0
    for start in range(0, x.size, TILE):
        m = min(TILE, x.size - start)
        magnitudes(x[start : start + m], base[start : start + m], has_base, values[:m])
        found = np.int32(0)
        for j in range(m):
            found += np.int32((bits[j] & below) != 0)
        fine += found
        for j in range(m):
            out[bits[j] >> by] += 1
    return fine


@jit
def histogram_window(x: Any, base: Any, has_base: Any, bits: Any, values: Any, low: Any, shift: Any, out: Any) -> Any:
    """Count (|x - base|'s bits - low) >> shift in the table, and what lies above it in the table's last entry.

    Returns how many elements in the table are not at the first pattern of their entry. Few should fall into the table:
    they are gathered first, without a branch to predict.
    """
    bins = out.size - 1
    found = _aligned(TILE, bits.dtype)
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
        over = np.int32(0)
        for j in range(m):
            over += np.int32(bits[j] > last)
            bits[j] -= first
        above += over
        kept = np.uint32(0)  # unsigned: a signed index would be checked for being negative
        for j in range(m):
            found[kept] = bits[j]
            kept += np.uint32(bits[j] < width)
        for j in range(kept):
            out[found[j] >> by] += 1
            fine += np.int64((found[j] & below) != 0)
    out[bins] += above
    return fine


@jit
def chunk_gram(addresses: Any, base: Any, has_base: Any, chunk: Any, like: Any, out: Any) -> None:
    """Store in out[i] the dot products of all x_k - base over the i-th chunk: 64 lanes, then those pairwise."""
    count = addresses.size
    n = like.size
    deltas = _aligned(count * TILE, np.float64).reshape(count, TILE)
    lanes = _aligned(count * count * LANES, np.float64).reshape(count, count, LANES)
    for i in range(out.shape[0]):
        lanes[:] = 0.0
        last = min(n, (i + 1) * chunk)
        for start in range(i * chunk, last, TILE):
            m = min(TILE, last - start)
            for k in range(count):
                _fill_terms(deltas[k, :m], addresses[k], 0, 0.0, 1.0, base, has_base, start, like)
            for k in range(count):
                for other in range(k + 1):
                    _add_products(lanes[k, other], deltas[k, :m], deltas[other, :m])
        for k in range(count):
            for other in range(k + 1):
                out[i, k, other] = out[i, other, k] = _add_lanes(lanes[k, other])


@jit
def chunk_sums(
    address: Any, mask: Any, limit: Any, base: Any, has_base: Any, squared: Any, chunk: Any, like: Any, out: Any
) -> None:
    """Store in out[i] the sum of |x - base|, or of its square, over the i-th chunk, where the mask is set."""
    n = like.size
    terms = _aligned(TILE, np.float64)
    others = _aligned(TILE, np.float64)
    others[:] = 1.0
    lanes = _aligned(LANES, np.float64)
    for i in range(out.size):
        lanes[:] = 0.0
        last = min(n, (i + 1) * chunk)
        for start in range(i * chunk, last, TILE):
            m = min(TILE, last - start)
            _fill_terms(terms[:m], address, mask, limit, 1.0, base, has_base, start, like)
            for j in range(m):
                terms[j] = abs(terms[j])
            if squared:
                for j in range(m):
                    others[j] = terms[j]
            _add_products(lanes, terms[:m], others[:m])
        out[i] = _add_lanes(lanes)


@jit
def _add_products(lanes: Any, a: Any, b: Any) -> None:
    """Add a[j] * b[j] to lane j % 64, in order; several steps at once, so that a lane is loaded and stored once."""
    n = a.size
    four = n // (4 * LANES) * (4 * LANES)
    for s in range(0, four, 4 * LANES):
        for j in range(LANES):
            total = lanes[j] + a[s + j] * b[s + j]
            total += a[s + LANES + j] * b[s + LANES + j]
            total += a[s + 2 * LANES + j] * b[s + 2 * LANES + j]
            total += a[s + 3 * LANES + j] * b[s + 3 * LANES + j]
            lanes[j] = total
    for s in range(four, n, LANES):
        for j in range(min(LANES, n - s)):
            lanes[j] += a[s + j] * b[s + j]


@jit
def _add_lanes(lanes: Any) -> Any:
    half = LANES // 2
    while half > 0:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]


@jit
def random_bits(key: Any, first: Any, out: Any) -> None:
    """The bits of elements from `first` on: the definition is random_bits.element_bits."""
    for j in range(out.size):
        z = key + (first + np.uint64(j) + np.uint64(1)) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
        out[j] = z ^ (z >> np.uint64(31))


@jit
def random_mask(key: Any, first: Any, low: Any, out: Any) -> None:
    """1 where the random bits of element first + j lie below `low`."""
    bits = _aligned(TILE, np.uint64)
    for start in range(0, out.size, TILE):
        mask = out[start : start + TILE]
        random_bits(key, first + np.uint64(start), bits[: mask.size])
        for j in range(mask.size):
            mask[j] = bits[j] < low
