"""Numba kernels that combine blocks: no state, no threads of their own, the GIL released, IEEE arithmetic as written.

Blocks are float32, float64, or bfloat16 codes (uint16), which are decoded on the way. Kernels over several inputs take
`inputs`, a pair of arrays: the address of each, and whether it holds codes; so one compilation serves any number.
`masks` are four arrays: the address of each mask that is written out (else 0); the least |x - base| that is kept and
the least above it that is not (NaN where there is none); a row for each mask of random bits (see random_kernels.py);
and scratch for drawing a tile's, of DRAW_WORDS. They work through tiles that stay in the first-level cache: the loop
over inputs outside, elements inside, which the compiler turns into vector code. (Indexing inputs inside the element
loop ran 10 times slower.) `like` is an array of the blocks' float type; `out` is of that type, or of codes, which a
tile of results is rounded to before it leaves the cache.
"""
# ruff: noqa: FURB136, PLR0917  max() would drop a NaN; compiled functions are called by position

from __future__ import annotations

from typing import Any

# isort: off
# First, because it settles where numba keeps compiled kernels.
from raymerge.compute.jit import TILE, aligned, carray, element, hold, jit, lent, pointer, prefetch
# isort: on

import numpy as np
from numba.core import types
from numba.extending import overload

from raymerge.compute.operations import VOTE_ROUNDING
from raymerge.compute.random_kernels import drawn_mask
from raymerge.compute.type_kernels import encode_bf16

ROW = TILE + 64  # a tile's place beside others: 8 KiB apart they would share the same few lines of the cache
DRAW_WORDS = TILE // 8 + TILE // 4 + 2  # 64-bit words: a byte and 16 random bits for each element of a tile
GROUP = 4  # inputs whose votes are added in one loop
LINE_BYTES = 64  # of the cache
CODES = np.empty(0, np.uint16)  # arrays named for their type
BYTES = np.empty(0, np.uint8)


@jit
def widen(x: Any, out: Any) -> None:
    """Elements as float64."""
    for j in range(out.size):
        out[j] = np.float64(element(x, j))


@jit
def lent_inputs(inputs: Any) -> Any:
    """Without counts of references: see jit.lent."""
    addresses, packed = inputs
    return lent(addresses), lent(packed)


@jit
def lent_masks(masks: Any) -> Any:
    written, limits, draws, words = masks
    return lent(written), lent(limits), lent(draws), lent(words)


@jit
def fetch_next(inputs: Any, base: Any, like: Any, start: Any, end: Any) -> None:
    """Set the tile after the one from `start` on its way to the second-level cache; `end` is the block's.

    The processor does not foresee it where streams are many and each is left so soon: an election of three inputs that
    come from memory takes 1.65 ns per element, 1.9 without. Where little is computed, asking costs more than it gains.
    """
    last = min(end, start + 2 * TILE)
    for k in range(inputs[0].size):
        width = 2 if inputs[1][k] else like.itemsize
        for j in range(start + TILE, last, LINE_BYTES // width):
            prefetch(inputs[0][k] + np.uintp(j * width))
    for j in range(start + TILE, min(last, base.size), LINE_BYTES // base.itemsize):
        prefetch(np.uintp(base.ctypes.data) + np.uintp(j * base.itemsize))


@jit
def weighted_sum(inputs: Any, coefficients: Any, like: Any, out: Any) -> None:
    """Store sum c_k a_k, accumulated in float64 in the order of the inputs, rounded once."""
    addresses, packed = lent_inputs(inputs)
    scratch, for_codes = aligned(TILE, np.float64), aligned(TILE, like.dtype)
    total, rounded, out, like = lent(scratch), lent(for_codes), lent(out), lent(like)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        for k in range(addresses.size):
            if packed[k]:
                codes = carray(pointer(addresses[k], CODES), (out.size,))[start : start + m]
                _add_scaled(codes, coefficients[k], k == 0, total)
            else:
                x = carray(pointer(addresses[k], like), (out.size,))[start : start + m]
                _add_scaled(x, coefficients[k], k == 0, total)
        result = result_tile(out, start, m, rounded)
        _finish(total[:m], 1.0, total, False, result)
        store(result, out, start)
    hold((scratch, for_codes))


def result_tile(out: Any, start: Any, size: Any, rounded: Any) -> Any:
    """Where a tile's results are put: in `out`, or in the scratch `rounded` where that holds codes. For kernels."""
    raise NotImplementedError("compiled code only")


def store(result: Any, out: Any, start: Any) -> None:
    """Round what a result_tile holds to codes, where `out` holds those. For kernels."""
    raise NotImplementedError("compiled code only")


def _result_tile(out, start, size, rounded):  # type: ignore[no-untyped-def]  # noqa: ARG001  numba compares signatures
    def in_scratch(out, start, size, rounded):  # type: ignore[no-untyped-def]  # noqa: ARG001
        return rounded[:size]

    def in_place(out, start, size, rounded):  # type: ignore[no-untyped-def]  # noqa: ARG001
        return out[start : start + size]

    return in_scratch if out.dtype == types.uint16 else in_place


def _store(result, out, start):  # type: ignore[no-untyped-def]  # noqa: ARG001
    def encode(result, out, start):  # type: ignore[no-untyped-def]
        encode_bf16(result.view(np.uint32), out[start : start + result.size])

    def leave(result, out, start):  # type: ignore[no-untyped-def]
        pass

    return encode if out.dtype == types.uint16 else leave


overload(result_tile)(_result_tile)
overload(store)(_store)


@jit
def _add_scaled(x: Any, c: Any, is_first: Any, total: Any) -> None:
    if is_first:
        for j in range(x.size):
            total[j] = c * np.float64(element(x, j))
    else:
        for j in range(x.size):
            total[j] += c * np.float64(element(x, j))


@jit
def fill_terms(
    terms: Any,
    inputs: Any,
    masks: Any,
    k: Any,
    coefficient: Any,
    base: Any,
    has_base: Any,
    start: Any,
    like: Any,
) -> None:
    """Store, for the tile from `start`, coefficient * (x_k - base), or 0 where mask k is not set.

    `base` is the tile's, in float64; `like` has the type of inputs that are not codes.
    """
    end = start + terms.size
    if inputs[1][k]:
        codes = carray(pointer(inputs[0][k], CODES), (end,))[start:]
        _fill(terms, codes, masks, k, coefficient, base, has_base, start)
    else:
        x = carray(pointer(inputs[0][k], like), (end,))[start:]
        _fill(terms, x, masks, k, coefficient, base, has_base, start)


@jit
def _fill(terms: Any, x: Any, masks: Any, k: Any, coefficient: Any, base: Any, has_base: Any, start: Any) -> None:
    if masks[0][k] != 0 or masks[2][k, 0] != 0:
        _fill_set(terms, x, base, has_base, tile_mask(masks, k, start, terms.size), coefficient)
    else:
        _fill_kept(terms, x, base, has_base, masks[1][k], coefficient)


@jit
def _fill_set(terms: Any, x: Any, base: Any, has_base: Any, mask: Any, coefficient: Any) -> None:
    if has_base:
        for j in range(terms.size):
            d = np.float64(element(x, j)) - base[j]
            terms[j] = coefficient * d if mask[j] != 0 else 0.0
    else:
        for j in range(terms.size):
            terms[j] = coefficient * np.float64(element(x, j)) if mask[j] != 0 else 0.0


@jit
def _fill_kept(terms: Any, x: Any, base: Any, has_base: Any, limits: Any, coefficient: Any) -> None:
    m = terms.size
    limit, end = limits[0], limits[1]
    if has_base and not np.isnan(end):
        for j in range(m):
            d = np.float64(element(x, j)) - base[j]
            a = abs(d)
            terms[j] = 0.0 if a < limit or not (a < end) else coefficient * d
    elif not np.isnan(end):
        for j in range(m):
            value = np.float64(element(x, j))
            a = abs(value)
            terms[j] = 0.0 if a < limit or not (a < end) else coefficient * value
    elif has_base and limit > 0.0:
        for j in range(m):
            d = np.float64(element(x, j)) - base[j]
            terms[j] = 0.0 if abs(d) < limit else coefficient * d
    elif has_base:
        for j in range(m):
            terms[j] = coefficient * (np.float64(element(x, j)) - base[j])
    else:
        for j in range(m):
            value = np.float64(element(x, j))
            terms[j] = 0.0 if abs(value) < limit else coefficient * value


@jit
def tile_mask(masks: Any, k: Any, start: Any, size: Any) -> Any:
    """Bytes of mask k for the tile from `start`: not 0 where it is set. Limits are not looked at."""
    if masks[0][k] != 0:
        return carray(pointer(masks[0][k], BYTES), (start + size,))[start:]
    mask = masks[3].view(np.uint8)[:size]
    if masks[2][k, 0] != 0:
        drawn_mask(masks[2][k], start, masks[3][TILE // 8 :], mask)
    else:
        mask[:] = 1
    return mask


@jit
def masked_sum(
    inputs: Any, masks: Any, coefficients: Any, base: Any, has_base: Any, factor: Any, like: Any, out: Any
) -> None:
    """Store base + factor * sum c_k m_k (x_k - base) in float64, rounded once; without a base it counts as 0."""
    memory, for_codes = aligned(3 * ROW, np.float64), aligned(TILE, like.dtype)
    scratch, rounded, base, out, like = lent(memory), lent(for_codes), lent(base), lent(out), lent(like)
    inputs, masks = lent_inputs(inputs), lent_masks(masks)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        fetch_next(inputs, base, like, start, out.size)
        total, terms, b = scratch[:m], scratch[ROW : ROW + m], scratch[2 * ROW : 2 * ROW + m]
        if has_base:
            widen(base[start : start + m], b)
        total[:] = 0.0
        for k in range(coefficients.size):
            fill_terms(terms, inputs, masks, k, coefficients[k], b, has_base, start, like)
            for j in range(m):
                total[j] += terms[j]
        result = result_tile(out, start, m, rounded)
        _finish(total, factor, b, has_base, result)
        store(result, out, start)
    hold((memory, for_codes))


@jit
def _finish(total: Any, factor: Any, base: Any, has_base: Any, result: Any) -> None:
    if has_base:
        for j in range(total.size):
            result[j] = base[j] + factor * total[j]
    else:
        for j in range(total.size):
            result[j] = factor * total[j]


@jit
def elect(
    inputs: Any,
    masks: Any,
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
    like: Any,
    out: Any,
) -> None:
    """The TIES election: out = base + factor * mean of the votes c_k m_k (x_k - base) whose sign their sum has.

    All in float64, rounded once. Votes above and below 0 are added apart; a vote of 0 agrees with neither side. Where
    the two sums are equal but for rounding, + wins, whatever the order of the inputs. The winning votes are added, each
    times its gain; with `divide` the sum is divided by the sum of their weights, where that is larger than `tiny`.
    """
    count = coefficients.size
    groups = -(-count // GROUP)
    term_memory = aligned(groups * GROUP * ROW, np.float64)
    sum_memory = aligned((5 + 2 * count_votes + 2 * has_gains) * ROW, np.float64)
    for_codes = aligned(TILE, like.dtype)
    terms, memory, rounded = lent(term_memory), lent(sum_memory), lent(for_codes)
    inputs, masks = lent_inputs(inputs), lent_masks(masks)
    base, out, like = lent(base), lent(out), lent(like)
    terms[:] = 0.0  # what fills up the last group stays so
    shares = np.zeros(groups * GROUP)
    shares[:count] = weights
    sums = memory[: 5 * ROW]  # of the votes and of the weights of both sides, and the base
    b = sums[4 * ROW :]
    b[:] = 0.0
    counts = memory[5 * ROW : (5 + 2 * count_votes) * ROW]
    gained = memory[(5 + 2 * count_votes) * ROW :]
    least = tiny if divide else np.inf
    is_plain = not (count_votes or has_gains)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        fetch_next(inputs, base, like, start, out.size)
        if has_base:
            widen(base[start : start + m], b[:m])
        for k in range(count):
            row = terms[k * ROW : k * ROW + m]
            fill_terms(row, inputs, masks, k, coefficients[k], b[:m], has_base, start, like)
        result = result_tile(out, start, m, rounded)
        if count == 2 and is_plain:
            _elect_of_two(terms, shares, b, least, factor, result)
        elif count == 3 and is_plain:
            _elect_of_three(terms, shares, b, least, factor, result)
        else:
            sums[: 4 * ROW] = 0.0
            for first in range(0, count, GROUP):
                _add_sides(terms[first * ROW :], shares[first:], m, sums)
            deciding, winning = sums, sums
            if count_votes:
                _add_gained(terms, np.ones(count), m, True, counts)
                deciding = counts
            if has_gains:
                _add_gained(terms, gains, m, False, gained)
                winning = gained
            _finish_election(deciding, winning, sums, least, factor, result)
        store(result, out, start)
    hold((term_memory, sum_memory, for_codes))


@jit
def _vote(term: Any, weight: Any, sides: Any) -> Any:
    """One more vote in the sums of both sides' votes, NaN in both, and of their weights."""
    plus, minus, plus_share, minus_share = sides
    plus += 0.0 if term < 0.0 else term
    minus -= 0.0 if term > 0.0 else term
    plus_share = plus_share + weight if term > 0.0 else plus_share
    minus_share = minus_share + weight if term < 0.0 else minus_share
    return plus, minus, plus_share, minus_share


@jit
def _settle(sides: Any, winning: Any, least: Any) -> Any:
    """The mean of the elected side: of `winning`, the sums of both, by the weights of the one whose votes prevail."""
    plus, minus, plus_share, minus_share = sides
    is_minus = minus - plus > VOTE_ROUNDING * minus
    total = -winning[1] if is_minus else winning[0]
    # One choice of two values that come from memory would be compiled to a load of a chosen address, which is slow.
    plus_share = plus_share if abs(plus_share) > least else 1.0
    minus_share = minus_share if abs(minus_share) > least else 1.0
    return total / (minus_share if is_minus else plus_share)


@jit
def _elect_of_two(terms: Any, weights: Any, base: Any, least: Any, factor: Any, result: Any) -> None:
    first, second = weights[0], weights[1]
    for j in range(result.size):
        sides = _vote(terms[j], first, (0.0, 0.0, 0.0, 0.0))
        sides = _vote(terms[ROW + j], second, sides)
        result[j] = base[j] + factor * _settle(sides, sides, least)


@jit
def _elect_of_three(terms: Any, weights: Any, base: Any, least: Any, factor: Any, result: Any) -> None:
    first, second, third = weights[0], weights[1], weights[2]
    for j in range(result.size):
        sides = _vote(terms[j], first, (0.0, 0.0, 0.0, 0.0))
        sides = _vote(terms[ROW + j], second, sides)
        sides = _vote(terms[2 * ROW + j], third, sides)
        result[j] = base[j] + factor * _settle(sides, sides, least)


@jit
def _add_sides(terms: Any, weights: Any, m: Any, sums: Any) -> None:
    """Add four inputs' votes to the sums in memory.

    Two arrays with constant offsets: the compiler can tell these apart, and makes vector code.
    """
    first, second, third, fourth = weights[0], weights[1], weights[2], weights[3]
    for j in range(m):
        sides = _vote(terms[j], first, (sums[j], sums[ROW + j], sums[2 * ROW + j], sums[3 * ROW + j]))
        sides = _vote(terms[ROW + j], second, sides)
        sides = _vote(terms[2 * ROW + j], third, sides)
        sides = _vote(terms[3 * ROW + j], fourth, sides)
        sums[j], sums[ROW + j], sums[2 * ROW + j], sums[3 * ROW + j] = sides


@jit
def _add_gained(terms: Any, gains: Any, m: Any, only_count: Any, sums: Any) -> None:
    """The sums of both sides' votes, each times its gain; or of the gains alone."""
    sums[:] = 0.0
    for k in range(gains.size):
        row = terms[k * ROW : k * ROW + m]
        gain = gains[k]
        if only_count:
            for j in range(m):
                sums[j] += gain if row[j] > 0.0 else 0.0
                sums[ROW + j] += gain if row[j] < 0.0 else 0.0
        else:
            for j in range(m):
                sums[j] += 0.0 if row[j] < 0.0 else gain * row[j]
                sums[ROW + j] -= 0.0 if row[j] > 0.0 else gain * row[j]


@jit
def _finish_election(deciding: Any, winning: Any, sums: Any, least: Any, factor: Any, result: Any) -> None:
    for j in range(result.size):
        sides = (deciding[j], deciding[ROW + j], sums[2 * ROW + j], sums[3 * ROW + j])
        result[j] = sums[4 * ROW + j] + factor * _settle(sides, (winning[j], winning[ROW + j]), least)
