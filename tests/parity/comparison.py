"""How far a merged tensor is from what it should be, in the measure that suits its stored type."""

from __future__ import annotations

import numpy as np

SIGNIFICANT_BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}
SMALLEST_EXPONENT = {"F64": -1022, "F32": -126, "F16": -14, "BF16": -126}


def ulp(values: np.ndarray, dtype: str) -> np.ndarray:
    """The distance of neighbours in the stored type at each value, as float64."""
    _, exponent = np.frexp(np.abs(values.astype(np.float64)))
    exponent = np.maximum(exponent - 1, SMALLEST_EXPONENT[dtype])
    return np.ldexp(1.0, exponent - (SIGNIFICANT_BITS[dtype] - 1))


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values rounded once, to nearest-even, to the stored type; still float64."""
    step = ulp(values, dtype)
    return np.rint(values / step) * step


def correctly_rounded(ours: np.ndarray, exact: np.ndarray, dtype: str) -> np.ndarray:
    """Per element: whether ours is at most (0.5 + 2^-10) steps of the stored type from the exact value."""
    return np.abs(ours.astype(np.float64) - exact) <= (0.5 + 2.0**-10) * ulp(exact, dtype)


def count_beyond(ours: np.ndarray, wanted: np.ndarray, tolerance: float) -> int:
    """Elements whose error exceeds `tolerance` times the largest magnitude wanted in the tensor."""
    largest = float(np.abs(wanted).max(initial=0.0)) or 1.0
    difference = np.abs(ours.astype(np.float64) - wanted.astype(np.float64))
    return int(np.count_nonzero(~(difference <= tolerance * largest)))


def relative_error(ours: np.ndarray, wanted: np.ndarray) -> float:
    largest = float(np.abs(wanted).max(initial=0.0)) or 1.0
    return float(np.abs(ours.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)) / largest


def rms_ratio(ours: np.ndarray, exact: np.ndarray, dtype: str) -> float:
    """RMS error against the exact values, over the RMS error of correct rounding (1 is the best possible)."""
    best = float(np.sqrt(np.mean(np.square(round_to(exact, dtype) - exact))))
    error = float(np.sqrt(np.mean(np.square(ours.astype(np.float64) - exact))))
    return error / best if best else (1.0 if error == 0 else np.inf)
