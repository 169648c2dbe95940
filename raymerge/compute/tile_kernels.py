"""What numba kernels take, tile by tile: one tile's elements of every input, its masks, and the place of its results.

Blocks are float32, float64, or bfloat16 codes (uint16), which are decoded on the way. Kernels over several inputs take
`inputs`, a pair of arrays: the address of each, and whether it holds codes; so one compilation serves any number.
`masks` are five arrays: the address of each mask that is written out or packed, or of where a drawn one is kept (else
0); the least |x - base| that is kept and the least above it that is not (NaN where there is none); a row for each mask
of random bits (see random_kernels.py); scratch for a tile's, of DRAW_WORDS; and whether the mask is packed, a bit for
each element. `like` is an array of the blocks' float type; `out` is of that type, or of codes, which a tile of results
is rounded to before it leaves the cache.
"""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

# isort: off
# First, because it settles where numba keeps compiled kernels.
from raymerge.compute.jit import (
    TILE,
    carray,
    element,
    inlined,
    jit,
    lent,
    pointer,
    prefetch,
    prefetch_near,
    prefetch_to_write,
)
# isort: on

import numpy as np
from numba.core import types
from numba.extending import overload

from raymerge.compute.random_kernels import drawn_mask
from raymerge.compute.type_kernels import encode_bf16

ROW = TILE + 64  # a tile's place beside others: 8 KiB apart they would share the same few lines of the cache
DRAW_WORDS = TILE // 8 + TILE // 4 + 2  # 64-bit words: a byte and 16 random bits for each element of a tile
LINE_BYTES = 64  # of the cache
BITS_TO_HIGHEST = 0x0102040810204080  # of a word: the lowest bit of each byte
BYTES_OF_1, BIT_OF_EACH = 0x0101010101010101, 0x8040201008040201  # of a word: bit i of byte i, from the lowest
CODES = np.empty(0, np.uint16)  # arrays named for their type
BYTES = np.empty(0, np.uint8)


@inlined
def widen(x: Any, out: Any) -> None:
    """Elements as float64."""
    for j in range(out.size):
        out[j] = np.float64(element(x, j))


@inlined
def as_floats(x: Any, out: Any) -> None:
    """Elements as floats of their own type."""
    for j in range(x.size):
        out[j] = element(x, j)


@jit
def lent_inputs(inputs: Any) -> Any:
    """Without counts of references: see jit.lent."""
    addresses, packed = inputs
    return lent(addresses), lent(packed)


@jit
def lent_masks(masks: Any) -> Any:
    written, limits, draws, words, packed = masks
    return lent(written), lent(limits), lent(draws), lent(words), lent(packed)


@inlined
def fetch(address: Any, width: Any, first: Any, end: Any) -> None:
    """Set elements of `width` bytes on their way to the second-level cache: those from `first` on, before `end`."""
    for j in range(first, end, LINE_BYTES // width):
        prefetch(address + np.uintp(j * width))


@inlined
def fetch_next(inputs: Any, base: Any, out: Any, like: Any, start: Any, end: Any, part: Any, parts: Any) -> None:
    """Fetch one of so many parts of the tile after the one from `start`, of all arrays; `end` is the block's.

    The processor does not foresee it where streams are many and each is left so soon. But asked for much at once it
    waits, and then leaves memory idle, so kernels ask little by little, between their loops: an election of three
    that came from memory in small pages took 2.3 ns per element on a Xeon of 2.6 GHz, 2.8 where all was asked for
    first; on an EPYC 1.75 where it was asked for in the second half of a tile's time, 1.5 spread over the whole of it.
    """
    first = start + TILE + TILE * part // parts
    last = min(end, start + TILE + TILE * (part + 1) // parts)
    for k in range(inputs[0].size):
        fetch(inputs[0][k], 2 if inputs[1][k] else like.itemsize, first, last)
    fetch(np.uintp(base.ctypes.data), base.itemsize, first, min(last, base.size))
    address = np.uintp(out.ctypes.data)
    for j in range(first, min(last, out.size), LINE_BYTES // out.itemsize):
        prefetch_to_write(address + np.uintp(j * out.itemsize))


@inlined
def fetch_next_near(inputs: Any, base: Any, like: Any, start: Any, end: Any, part: Any, parts: Any) -> None:
    """As fetch_next, to the first-level cache: for kernels whose scratch leaves room there, and that store nothing."""
    first = start + TILE + TILE * part // parts
    last = min(end, start + TILE + TILE * (part + 1) // parts)
    for k in range(inputs[0].size):
        width = 2 if inputs[1][k] else like.itemsize
        for j in range(first, last, LINE_BYTES // width):
            prefetch_near(inputs[0][k] + np.uintp(j * width))
    address = np.uintp(base.ctypes.data)
    for j in range(first, min(last, base.size), LINE_BYTES // base.itemsize):
        prefetch_near(address + np.uintp(j * base.itemsize))


@inlined
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


@inlined
def _fill(terms: Any, x: Any, masks: Any, k: Any, coefficient: Any, base: Any, has_base: Any, start: Any) -> None:
    if masks[0][k] != 0 or masks[2][k, 0] != 0:
        _fill_set(terms, x, base, has_base, tile_mask(masks, k, start, terms.size), coefficient)
    else:
        _fill_kept(terms, x, base, has_base, masks[1][k], coefficient)


@inlined
def _fill_set(terms: Any, x: Any, base: Any, has_base: Any, mask: Any, coefficient: Any) -> None:
    if has_base:
        for j in range(terms.size):
            d = np.float64(element(x, j)) - base[j]
            terms[j] = coefficient * d if mask[j] != 0 else 0.0
    else:
        for j in range(terms.size):
            terms[j] = coefficient * np.float64(element(x, j)) if mask[j] != 0 else 0.0


@inlined
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


@inlined
def tile_mask(masks: Any, k: Any, start: Any, size: Any) -> Any:
    """Bytes of mask k for the tile from `start`: not 0 where it is set. Limits are not looked at."""
    if masks[4][k]:
        return unpacked(masks[0][k], start, size, masks[3])
    mask = masks[3].view(np.uint8)[:size]
    if masks[2][k, 0] != 0:
        drawn_mask(masks[2][k], start, masks[3][TILE // 8 :], mask)
        return mask
    if masks[0][k] != 0:
        return carray(pointer(masks[0][k], BYTES), (start + size,))[start:]
    mask[:] = 1
    return mask


@inlined
def unpacked(address: Any, start: Any, size: Any, words: Any) -> Any:
    """Bytes in scratch, not 0 where the bits of the elements from `start` on are set."""
    skipped = start % 8
    needed = (skipped + size + 7) // 8
    bits = carray(pointer(address, BYTES), (start // 8 + needed,))[start // 8 :]
    for i in range(needed):
        words[i] = (np.uint64(bits[i]) * np.uint64(BYTES_OF_1)) & np.uint64(BIT_OF_EACH)
    return words.view(np.uint8)[skipped : skipped + size]


@inlined
def keep_drawn(masks: Any, k: Any, start: Any, size: Any) -> None:
    """Pack mask k, which tile_mask has just drawn into scratch, where it is to be kept; `start` is a multiple of 8."""
    needed = (size + 7) // 8
    masks[3].view(np.uint8)[size : 8 * needed] = 0
    pack(masks[3][:needed], carray(pointer(masks[0][k], BYTES), (start // 8 + needed,))[start // 8 :])


@jit
def pack(words: Any, out: Any) -> None:
    """Bits of bytes that are 0 or 1: the product moves each byte's to its place in the highest byte."""
    for i in range(words.size):
        out[i] = (words[i] * np.uint64(BITS_TO_HIGHEST)) >> np.uint64(56)


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
