"""Numba kernels that add up over fixed chunks of a block: 64 lanes in element order, then those pairwise.

For `inputs` and `masks` see tile_kernels.py; `n` is the block's size, `like` an array of the type of floats.
"""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

# isort: off
# First, because it settles where numba keeps compiled kernels.
from raymerge.compute.jit import TILE, aligned, carray, element, hold, jit, lent, plus_exact_product, pointer
# isort: on

import numpy as np
from numba.core import types
from numba.extending import overload

from raymerge.compute.sums import LANES
from raymerge.compute.tile_kernels import (
    CODES,
    ROW,
    as_floats,
    fetch_next_near,
    fill_terms,
    keep_drawn,
    lent_inputs,
    lent_masks,
    tile_mask,
    widen,
)


@jit
def chunk_gram(inputs: Any, masks: Any, base: Any, has_base: Any, n: Any, chunk: Any, like: Any, out: Any) -> None:
    """Store in out[i] the dot products of all x_k - base over the i-th chunk: 64 lanes, then those pairwise.

    No mask may be set.
    """
    count = out.shape[1]
    delta_memory = aligned((count + 1) * ROW, np.float64)
    lane_memory = aligned(count * count * LANES, np.float64)
    deltas, b = lent(delta_memory).reshape(count + 1, ROW), lent(delta_memory)[count * ROW :]
    lanes = lent(lane_memory).reshape(count, count, LANES)
    inputs, masks = lent_inputs(inputs), lent_masks(masks)
    base, out, like = lent(base), lent(out), lent(like)
    addresses, packed = inputs
    is_plain = count == 2 and not has_base and packed.all()
    for i in range(out.shape[0]):
        lanes[:] = 0.0
        last = min(n, (i + 1) * chunk)
        for start in range(i * chunk, last, TILE):
            m = min(TILE, last - start)
            if is_plain:  # the deltas are what the codes say: they need not be written down
                first = carray(pointer(addresses[0], CODES), (start + m,))[start:]
                second = carray(pointer(addresses[1], CODES), (start + m,))[start:]
                _add_products_of_two(lanes[0, 0], lanes[1, 0], lanes[1, 1], first, second)
                continue
            if has_base:
                widen(base[start : start + m], b[:m])
            for k in range(count):
                fill_terms(deltas[k, :m], inputs, masks, k, 1.0, b[:m], has_base, start, like)
            _add_gram(lanes, deltas[:count], m)
        for k in range(count):
            for other in range(k + 1):
                out[i, k, other] = out[i, other, k] = _add_lanes(lanes[k, other])
    hold((delta_memory, lane_memory))


@jit
def _add_gram(lanes: Any, deltas: Any, m: Any) -> None:
    count = deltas.shape[0]
    if count == 2:
        _add_products_of_two(lanes[0, 0], lanes[1, 0], lanes[1, 1], deltas[0, :m], deltas[1, :m])
        return
    for k in range(count):
        for other in range(k + 1):
            _add_products(lanes[k, other], deltas[k, :m], deltas[other, :m])


@jit
def chunk_sums(
    inputs: Any, masks: Any, base: Any, has_base: Any, squared: Any, n: Any, chunk: Any, like: Any, out: Any
) -> None:
    """Store in out[i] the sum of |x - base|, or of its square, over the i-th chunk, where the mask is set."""
    memory = aligned(2 * ROW + LANES, np.float64)
    scratch, lanes = lent(memory)[: 2 * ROW], lent(memory)[2 * ROW :]
    inputs, masks = lent_inputs(inputs), lent_masks(masks)
    base, out, like = lent(base), lent(out), lent(like)
    for i in range(out.size):
        lanes[:] = 0.0
        last = min(n, (i + 1) * chunk)
        for start in range(i * chunk, last, TILE):
            m = min(TILE, last - start)
            terms, b = scratch[:m], scratch[ROW : ROW + m]
            if has_base:
                widen(base[start : start + m], b)
            fill_terms(terms, inputs, masks, 0, 1.0, b, has_base, start, like)
            for j in range(m):
                terms[j] = abs(terms[j])
            if squared:
                _add_products(lanes, terms, terms)
            else:
                _add_values(lanes, terms)
        out[i] = _add_lanes(lanes)
    hold((memory,))


@jit
def chunk_norms(inputs: Any, masks: Any, base: Any, has_base: Any, n: Any, chunk: Any, like: Any, out: Any) -> None:
    """Store in out[i, k] the sums of |x_k - base| over the i-th chunk: of all elements, and where mask k is set.

    Four steps of a lane are added in the blocks' type, whose vectors take twice as many, before they go to the lane.
    Drawn masks are kept where there is room.
    """
    count = out.shape[1]
    memory, short_memory = aligned(2 * count * LANES, np.float64), aligned(TILE + 2 * LANES, like.dtype)
    lanes, b, short = lent(memory).reshape(count, 2, LANES), lent(short_memory)[:TILE], lent(short_memory)[TILE:]
    inputs, masks = lent_inputs(inputs), lent_masks(masks)
    base, out, like = lent(base), lent(out), lent(like)
    addresses, packed = inputs
    b[:] = 0.0
    for i in range(out.shape[0]):
        lanes[:] = 0.0
        last = min(n, (i + 1) * chunk)
        for start in range(i * chunk, last, TILE):
            m = min(TILE, last - start)
            if has_base:
                as_floats(base[start : start + m], b)
            for k in range(count):
                fetch_next_near(inputs, base, like, start, last, 2 * k, 2 * count)
                mask = tile_mask(masks, k, start, m)
                if masks[2][k, 0] != 0 and masks[0][k] != 0:
                    keep_drawn(masks, k, start, m)
                fetch_next_near(inputs, base, like, start, last, 2 * k + 1, 2 * count)
                if packed[k]:
                    codes = carray(pointer(addresses[k], CODES), (start + m,))[start:]
                    _mark_within(codes, b, masks[1][k], mask)
                    _add_norms(lanes[k], codes, b, mask, short)
                else:
                    x = carray(pointer(addresses[k], like), (start + m,))[start:]
                    _mark_within(x, b, masks[1][k], mask)
                    _add_norms(lanes[k], x, b, mask, short)
        for k in range(count):
            out[i, k, 0], out[i, k, 1] = _add_lanes(lanes[k, 0]), _add_lanes(lanes[k, 1])
    hold((memory, short_memory))


@jit
def norms_of(magnitudes: Any, mask: Any, lanes: Any, short: Any, out: Any) -> None:
    """Store what chunk_norms does for one input whose |x - base| are at hand; of scratch, `lanes` are (2, LANES)."""
    lanes[:] = 0.0
    _add_norms(lanes, magnitudes, None, mask, short)
    out[0], out[1] = _add_lanes(lanes[0]), _add_lanes(lanes[1])


def _magnitude(x: Any, base: Any, j: Any) -> Any:
    """|x[j] - base[j]|; without a base x holds magnitudes. For kernels."""
    raise NotImplementedError("compiled code only")


def _magnitude_of(x, base, j):  # type: ignore[no-untyped-def]  # noqa: ARG001  numba compares signatures
    if isinstance(base, types.NoneType):
        return lambda x, base, j: x[j]  # noqa: ARG005
    return lambda x, base, j: abs(element(x, j) - base[j])


overload(_magnitude)(_magnitude_of)


@jit
def _add_norms(lanes: Any, x: Any, base: Any, mask: Any, short: Any) -> None:
    """Add |x[j] - base[j]| to lane j % 64 of the first ones, and where the mask is set to that of the second.

    `short` are as many lanes again, of the blocks' type. The last steps may be fewer than four, and the last one short.
    """
    four = x.size // (4 * LANES) * (4 * LANES)
    zero = np.float32(0)
    for s in range(0, four, 4 * LANES):
        for j in range(LANES):
            d = _magnitude(x, base, s + j)
            total = d
            share = d if mask[s + j] != 0 else zero
            d = _magnitude(x, base, s + LANES + j)
            total += d
            share += d if mask[s + LANES + j] != 0 else zero
            d = _magnitude(x, base, s + 2 * LANES + j)
            total += d
            share += d if mask[s + 2 * LANES + j] != 0 else zero
            d = _magnitude(x, base, s + 3 * LANES + j)
            total += d
            share += d if mask[s + 3 * LANES + j] != 0 else zero
            short[j] = total
            short[LANES + j] = share
        for j in range(LANES):
            lanes[0, j] += np.float64(short[j])
            lanes[1, j] += np.float64(short[LANES + j])
    if four == x.size:
        return
    short[:] = 0.0
    for j in range(four, x.size):
        d = _magnitude(x, base, j)
        short[j % LANES] += d
        short[LANES + j % LANES] += d if mask[j] != 0 else zero
    for j in range(LANES):
        lanes[0, j] += np.float64(short[j])
        lanes[1, j] += np.float64(short[LANES + j])


@jit
def _mark_within(x: Any, base: Any, limits: Any, mask: Any) -> None:
    """Where there are limits, 1 where |x - base| lies within them: see tile_kernels.py."""
    limit, end = limits[0], limits[1]
    is_open = np.isnan(end)
    if is_open and not limit > 0.0:
        return
    for j in range(x.size):
        magnitude = abs(np.float64(element(x, j)) - np.float64(base[j]))
        mask[j] = not magnitude < limit and (is_open or magnitude < end)


@jit
def _add_values(lanes: Any, a: Any) -> None:
    """Add a[j] to lane j % 64, in order; several steps at once, so that a lane is loaded and stored once."""
    n = a.size
    four = n // (4 * LANES) * (4 * LANES)
    for s in range(0, four, 4 * LANES):
        for j in range(LANES):
            total = lanes[j] + a[s + j]
            total += a[s + LANES + j]
            total += a[s + 2 * LANES + j]
            total += a[s + 3 * LANES + j]
            lanes[j] = total
    for s in range(four, n, LANES):
        for j in range(min(LANES, n - s)):
            lanes[j] += a[s + j]


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


def _plus_product(z: Any, x: Any, y: Any, a: Any) -> Any:
    """The sum z + x y in float64, x and y being elements of arrays like `a`. For kernels."""
    raise NotImplementedError("compiled code only")


def _plus_product_of(z, x, y, a):  # type: ignore[no-untyped-def]  # noqa: ARG001  numba compares signatures
    if a.dtype == types.float64:
        return lambda z, x, y, a: z + x * y  # noqa: ARG005
    return lambda z, x, y, a: plus_exact_product(z, x, y)  # noqa: ARG005  24 bits each at most


overload(_plus_product)(_plus_product_of)


@jit
def _add_products_of_two(first: Any, mixed: Any, second: Any, a: Any, b: Any) -> None:
    """Add a[j]^2, a[j] b[j] and b[j]^2 to lane j % 64 of each, as _add_products does."""
    n = a.size
    four = n // (4 * LANES) * (4 * LANES)
    for s in range(0, four, 4 * LANES):
        for j in range(LANES):
            xx, xy, yy = first[j], mixed[j], second[j]
            for step in range(4):
                x = np.float64(element(a, s + step * LANES + j))
                y = np.float64(element(b, s + step * LANES + j))
                xx = _plus_product(xx, x, x, a)
                xy = _plus_product(xy, x, y, a)
                yy = _plus_product(yy, y, y, a)
            first[j], mixed[j], second[j] = xx, xy, yy
    for s in range(four, n, LANES):
        for j in range(min(LANES, n - s)):
            x, y = np.float64(element(a, s + j)), np.float64(element(b, s + j))
            first[j] += x * x
            mixed[j] += x * y
            second[j] += y * y


@jit
def _add_lanes(lanes: Any) -> Any:
    half = LANES // 2
    while half > 0:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]
