"""Numba kernels that combine blocks: no state, no threads of their own, the GIL released, IEEE arithmetic as written.

For blocks, `inputs`, `masks` and `like` see tile_kernels.py. Kernels work through tiles that stay in the first-level
cache: the loop over inputs outside, elements inside, which the compiler turns into vector code. (Indexing inputs inside
the element loop ran 10 times slower.)
"""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

# isort: off
# First, because it settles where numba keeps compiled kernels.
from raymerge.compute.jit import TILE, aligned, carray, choose, element, hold, jit, lent, pointer
# isort: on

import numpy as np

from raymerge.compute.operations import VOTE_ROUNDING
from raymerge.compute.tile_kernels import (
    CODES,
    ROW,
    fetch_next,
    fill_terms,
    lent_inputs,
    lent_masks,
    result_tile,
    store,
    widen,
)

GROUP = 4  # inputs whose votes are added in one loop


@jit
def weighted_sum(inputs: Any, coefficients: Any, like: Any, out: Any) -> None:
    """Store sum c_k a_k, accumulated in float64 in the order of the inputs, rounded once."""
    inputs = lent_inputs(inputs)
    addresses, packed = inputs
    count = addresses.size
    scratch, for_codes = aligned(TILE, np.float64), aligned(TILE, like.dtype)
    total, rounded, out, like = lent(scratch), lent(for_codes), lent(out), lent(like)
    none = like[:0]  # so light a loop gains nothing from having its results' place fetched
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        for k in range(count):
            fetch_next(inputs, none, none, like, start, out.size, k, count + 1)
            if packed[k]:
                codes = carray(pointer(addresses[k], CODES), (out.size,))[start : start + m]
                _add_scaled(codes, coefficients[k], k == 0, total)
            else:
                x = carray(pointer(addresses[k], like), (out.size,))[start : start + m]
                _add_scaled(x, coefficients[k], k == 0, total)
        fetch_next(inputs, none, none, like, start, out.size, count, count + 1)
        result = result_tile(out, start, m, rounded)
        _finish(total[:m], 1.0, total, False, result)
        store(result, out, start)
    hold((scratch, for_codes))


@jit
def _add_scaled(x: Any, c: Any, is_first: Any, total: Any) -> None:
    if is_first:
        for j in range(x.size):
            total[j] = c * np.float64(element(x, j))
    else:
        for j in range(x.size):
            total[j] += c * np.float64(element(x, j))


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
        total, terms, b = scratch[:m], scratch[ROW : ROW + m], scratch[2 * ROW : 2 * ROW + m]
        if has_base:
            widen(base[start : start + m], b)
        total[:] = 0.0
        for k in range(coefficients.size):
            fetch_next(inputs, base, out, like, start, out.size, k, coefficients.size)
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
    shares = _filled_up(weights, groups * GROUP)
    sums = memory[: 5 * ROW]  # of the votes and of the weights of both sides, and the base
    b = sums[4 * ROW :]
    b[:] = 0.0
    counts = memory[5 * ROW : (5 + 2 * count_votes) * ROW]
    gained = memory[(5 + 2 * count_votes) * ROW :]
    least = tiny if divide else np.inf
    is_plain = not (count_votes or has_gains)
    for start in range(0, out.size, TILE):
        m = min(TILE, out.size - start)
        if has_base:
            widen(base[start : start + m], b[:m])
        for k in range(count):
            row = terms[k * ROW : k * ROW + m]
            fetch_next(inputs, base, out, like, start, out.size, k, count + 1)
            fill_terms(row, inputs, masks, k, coefficients[k], b[:m], has_base, start, like)
        result = result_tile(out, start, m, rounded)
        fetch_next(inputs, base, out, like, start, out.size, count, count + 1)
        if is_plain and count == 2:
            _elect_of_two(terms, shares, b, divide, least, factor, result)
        elif is_plain and count == 3:
            _elect_of_three(terms, shares, b, divide, least, factor, result)
        else:
            sums[: 4 * ROW] = 0.0
            for first in range(0, count, GROUP):
                _add_sides(terms[first * ROW :], shares[first:], m, divide, sums)
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
def _filled_up(weights: Any, size: Any) -> Any:
    """The weights, and 0 up to a size."""
    shares = np.zeros(size)
    for k in range(weights.size):  # not as a slice: the text of the error for sizes that differ takes 1 s to compile
        shares[k] = weights[k]
    return shares


@jit
def _vote(term: Any, plus: Any, minus: Any) -> Any:
    """One more vote in the sums of both sides; NaN in both."""
    plus += choose(term < 0.0, 0.0, term)
    minus -= choose(term > 0.0, 0.0, term)
    return plus, minus


@jit
def _share(term: Any, weight: Any, plus: Any, minus: Any) -> Any:
    """The weight of one more vote in the sum of its side."""
    return choose(term > 0.0, plus + weight, plus), choose(term < 0.0, minus + weight, minus)


@jit
def _is_minus(votes: Any) -> Any:
    """Whether the votes below 0 prevail, by more than rounding."""
    return votes[1] - votes[0] > VOTE_ROUNDING * votes[1]


@jit
def _sum(sides: Any, is_minus: Any) -> Any:
    """The elected side's."""
    return choose(is_minus, -sides[1], sides[0])


@jit
def _mean(sides: Any, shares: Any, is_minus: Any, least: Any) -> Any:
    """The elected side's sum by its weights, where those are more than `least`."""
    share = choose(is_minus, shares[1], shares[0])
    return _sum(sides, is_minus) / choose(abs(share) > least, share, 1.0)


@jit
def _elect_of_two(terms: Any, weights: Any, base: Any, divide: Any, least: Any, factor: Any, result: Any) -> None:
    first, second = weights[0], weights[1]
    if not divide:
        for j in range(result.size):
            votes = _vote(terms[j], 0.0, 0.0)
            votes = _vote(terms[ROW + j], *votes)
            result[j] = base[j] + factor * _sum(votes, _is_minus(votes))
        return
    for j in range(result.size):
        votes, shares = _vote(terms[j], 0.0, 0.0), _share(terms[j], first, 0.0, 0.0)
        votes, shares = _vote(terms[ROW + j], *votes), _share(terms[ROW + j], second, *shares)
        result[j] = base[j] + factor * _mean(votes, shares, _is_minus(votes), least)


@jit
def _elect_of_three(terms: Any, weights: Any, base: Any, divide: Any, least: Any, factor: Any, result: Any) -> None:
    first, second, third = weights[0], weights[1], weights[2]
    if not divide:
        for j in range(result.size):
            votes = _vote(terms[j], 0.0, 0.0)
            votes = _vote(terms[ROW + j], *votes)
            votes = _vote(terms[2 * ROW + j], *votes)
            result[j] = base[j] + factor * _sum(votes, _is_minus(votes))
        return
    for j in range(result.size):
        votes, shares = _vote(terms[j], 0.0, 0.0), _share(terms[j], first, 0.0, 0.0)
        votes, shares = _vote(terms[ROW + j], *votes), _share(terms[ROW + j], second, *shares)
        votes, shares = _vote(terms[2 * ROW + j], *votes), _share(terms[2 * ROW + j], third, *shares)
        result[j] = base[j] + factor * _mean(votes, shares, _is_minus(votes), least)


@jit
def _add_sides(terms: Any, weights: Any, m: Any, divide: Any, sums: Any) -> None:
    """Add four inputs' votes to the sums in memory, and their weights where those are divided by.

    Two arrays with constant offsets: the compiler can tell these apart, and makes vector code.
    """
    first, second, third, fourth = weights[0], weights[1], weights[2], weights[3]
    if not divide:
        for j in range(m):
            votes = _vote(terms[j], sums[j], sums[ROW + j])
            votes = _vote(terms[ROW + j], *votes)
            votes = _vote(terms[2 * ROW + j], *votes)
            sums[j], sums[ROW + j] = _vote(terms[3 * ROW + j], *votes)
        return
    for j in range(m):
        votes, shares = (sums[j], sums[ROW + j]), (sums[2 * ROW + j], sums[3 * ROW + j])
        votes, shares = _vote(terms[j], *votes), _share(terms[j], first, *shares)
        votes, shares = _vote(terms[ROW + j], *votes), _share(terms[ROW + j], second, *shares)
        votes, shares = _vote(terms[2 * ROW + j], *votes), _share(terms[2 * ROW + j], third, *shares)
        sums[j], sums[ROW + j] = _vote(terms[3 * ROW + j], *votes)
        sums[2 * ROW + j], sums[3 * ROW + j] = _share(terms[3 * ROW + j], fourth, *shares)


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
        is_minus = _is_minus((deciding[j], deciding[ROW + j]))
        shares = sums[2 * ROW + j], sums[3 * ROW + j]
        result[j] = sums[4 * ROW + j] + factor * _mean((winning[j], winning[ROW + j]), shares, is_minus, least)
