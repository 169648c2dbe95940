"""Numba kernels between stored element types and float32 blocks."""

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import jit  # first: it settles numba's cache folder  # isort: skip

import numpy as np


@jit
def decode_bf16(raw: Any, out: Any) -> None:
    for j in range(out.size):
        out[j] = np.uint32(raw[j]) << np.uint32(16)


@jit
def encode_bf16(bits: Any, out: Any) -> None:
    """float32 bits to bfloat16 bits, to nearest even; NaN becomes the quiet NaN 0x7fc0, as in torch."""
    for j in range(out.size):
        b = bits[j]
        rounded = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        is_nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[j] = np.uint16(np.uint32(0x7FC0) if is_nan else rounded)


@jit
def count_nonfinite_codes(codes: Any, exponent: Any) -> Any:
    """How many codes of 16 bits are infinite or NaN: have all bits of their type's exponent set."""
    count = np.int32(0)  # a loop of its own: one that rounds as well took twice as long as both
    for j in range(codes.size):
        count = np.int32(count + np.int32((codes[j] & exponent) == exponent))
    return count


@jit
def decode_f16(raw: Any, out: Any, out_bits: Any) -> None:
    """float16 bits to float32; `out` and `out_bits` are the same memory, so each loop touches one of them."""
    for j in range(out.size):
        out_bits[j] = (np.uint32(raw[j]) & np.uint32(0x7FFF)) << np.uint32(13)
    scale = np.float32(2.0**112)  # the exponents' biases differ by 112: exact, and right for subnormals too
    for j in range(out.size):
        out[j] *= scale
    for j in range(out.size):
        h = np.uint32(raw[j])
        special = np.uint32(0x7F800000) if (h & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0)
        out_bits[j] |= ((h & np.uint32(0x8000)) << np.uint32(16)) | special


@jit
def encode_f16(bits: Any, out: Any, small: Any, small_bits: Any) -> None:
    """float32 bits to float16 bits, to nearest even; NaN becomes 0x7e00. `small` and `small_bits` share memory.

    Below 2^-14 adding 0.5 lets the float32 addition round to float16's subnormal grid, 2^-24.
    """
    for j in range(out.size):
        magnitude = bits[j] & np.uint32(0x7FFFFFFF)
        small_bits[j] = min(magnitude, np.uint32(0x38800000))
    for j in range(out.size):
        small[j] += np.float32(0.5)
    for j in range(out.size):
        b = bits[j]
        magnitude = b & np.uint32(0x7FFFFFFF)
        odd = (magnitude >> np.uint32(13)) & np.uint32(1)
        normal = (magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        code = small_bits[j] - np.uint32(0x3F000000) if magnitude < np.uint32(0x38800000) else normal
        code = np.uint32(0x7C00) if magnitude >= np.uint32(0x477FF000) else code  # 65520 and above round to infinity
        code = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else code
        out[j] = np.uint16(code | ((b >> np.uint32(16)) & np.uint32(0x8000)))


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
