"""Counting stored values that are infinite or no numbers, from their bits."""

from __future__ import annotations

from typing import Any

from raymerge.dtypes import DType

# Each type as unsigned integers, and its exponent's bits: all of them set means infinity or NaN.
EXPONENTS = {
    DType.F16: ("<u2", 0x7C00),
    DType.BF16: ("<u2", 0x7F80),
    DType.F32: ("<u4", 0x7F800000),
    DType.F64: ("<u8", 0x7FF0000000000000),
}


def nonfinite_count(data: bytearray | memoryview, dtype: DType) -> int:
    """How many elements of a type in EXPONENTS are infinite or no numbers."""
    import numpy as np

    kind, exponent = EXPONENTS[dtype]
    bits: Any = np.frombuffer(data, kind)
    mask = bits.dtype.type(exponent)
    return int(np.count_nonzero((bits & mask) == mask))
