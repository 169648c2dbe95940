"""Values of quantized weights, as their own libraries compute them: float32 products of a table's entry and a scale."""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import jit  # first: it settles numba's cache folder  # isort: skip

import numpy as np
from numpy.typing import NDArray

_FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def float8_table(exponent_bits: int) -> NDArray[np.float32]:
    """The value of each code: 4 exponent bits are E4M3 (no infinities), 5 are E5M2 (as IEEE 754; arXiv 2209.05433)."""
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    fraction = codes % (1 << mantissa_bits) / (1 << mantissa_bits)
    exponent = (codes >> mantissa_bits) % (1 << exponent_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    values = np.ldexp(np.where(exponent > 0, 1 + fraction, fraction), np.maximum(exponent, 1) - bias)
    if exponent_bits == 4:
        values[codes % 128 == 127] = np.nan
    else:
        values[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    return np.array(np.where(codes < 128, values, -values), np.float32)


def fp4_table() -> NDArray[np.float32]:
    """The value of each code of E2M1."""
    return np.array((*_FP4_MAGNITUDES, *(-value for value in _FP4_MAGNITUDES)), np.float32)


def power_table() -> NDArray[np.float64]:
    """The power of two of each code of E8M0, float64 since float32 has no 2^128."""
    return np.array(np.ldexp(1.0, np.arange(256) - 127), np.float64)


@jit
def scale_codes(codes: Any, start: Any, columns: Any, table: Any, scales: Any, block: Any, out: Any) -> None:
    """Store table[code] * scale for a matrix's elements from `start` on; `scales` are by blocks of rows and columns."""
    rows_per_scale, columns_per_scale = block
    done: Any = 0
    while done < out.size:
        row, column = (start + done) // columns, (start + done) % columns
        m = min(columns_per_scale - column % columns_per_scale, columns - column, out.size - done)
        scale = scales[row // rows_per_scale, column // columns_per_scale]
        for j in range(done, done + m):
            out[j] = table[codes[j]] * scale
        done += m


@jit
def look_up(packed: Any, start: Any, code: Any, absmax: Any, block: Any, out: Any) -> None:
    """Store code[c] * absmax for the elements from `start` on; `packed` begins with the byte that holds the first."""
    first = start // 2
    for j in range(out.size):
        i = start + j
        byte = np.int64(packed[i // 2 - first])
        entry = byte >> 4 if i % 2 == 0 else byte & 15
        out[j] = code[entry] * absmax[i // block]


@jit
def unpack_transposed(packed: Any, start: Any, columns: Any, table: Any, powers: Any, scales: Any, out: Any) -> None:
    """Store the elements from `start` on of matrices whose transposes are `packed`, from the first one's own on.

    `scales` has the shape (matrices, columns, blocks), and a block has 32 rows.
    """
    blocks = scales.shape[2]
    size = blocks * 32 * columns
    first = start // size
    done: Any = 0
    while done < out.size:
        matrix, inside = (start + done) // size, (start + done) % size
        row, column = inside // columns, inside % columns
        m = min(columns - column, out.size - done)
        shift = 4 if row % 2 else 0
        place = ((matrix - first) * columns + column) * blocks * 16 + row // 2
        for j in range(m):
            entry = (packed[place + j * blocks * 16] >> shift) & 15
            out[done + j] = table[entry] * powers[scales[matrix, column + j, row // 32]]
        done += m
