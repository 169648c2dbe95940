"""What numba kernels take for arrays and masks: see tile_kernels.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from raymerge.compute.tile_kernels import DRAW_WORDS  # first: the kernels settle numba's cache folder  # isort: skip

import numpy as np
from numpy.typing import NDArray

from raymerge.compute.operations import Array, Drawn, Limit, Mask, PackedMask


def addresses(arrays: Sequence[Any]) -> NDArray[np.uintp]:
    """Where the arrays lie. The caller keeps them alive. They must be contiguous."""
    return np.array([each.ctypes.data for each in arrays], np.uintp)


def as_inputs(arrays: Sequence[Any]) -> tuple[NDArray[np.uintp], NDArray[np.bool_]]:
    """What kernels take for several arrays, of floats or of codes."""
    return addresses(arrays), np.array([each.dtype == np.uint16 for each in arrays], np.bool_)


def as_masks(
    masks: Sequence[Mask], dtype: Any
) -> tuple[NDArray[np.uintp], NDArray[np.float64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
    """What kernels take for masks: see tile_kernels.py."""
    limits, draws = np.zeros((len(masks), 2)), np.zeros((len(masks), 4), np.uint64)
    limits[:, 1] = np.nan
    written, packed = np.zeros(len(masks), np.uintp), np.zeros(len(masks), np.bool_)
    for i, mask in enumerate(masks):
        if isinstance(mask, Limit):
            limits[i, 0] = _least_kept(mask.threshold, mask.inclusive, dtype.itemsize)
            if mask.below is not None:
                limits[i, 1] = _least_kept(mask.below.threshold, mask.below.inclusive, dtype.itemsize)
        elif isinstance(mask, Drawn):
            draws[i] = (1, mask.key, mask.start, mask.limit)
            written[i] = 0 if mask.kept is None else mask.kept.bits.ctypes.data
        elif isinstance(mask, PackedMask):
            written[i], packed[i] = mask.bits.ctypes.data, True
        elif mask is not None:
            written[i] = mask.ctypes.data
    return written, limits, draws, empty(DRAW_WORDS, np.uint64), packed


def as_base(base: Array | None, like: Array) -> tuple[Array, bool]:
    return (like, False) if base is None else (base, True)


def empty(size: int, dtype: Any) -> NDArray[Any]:
    """An array that starts on a cache line: vectors that straddle two made kernels a third slower."""
    memory = np.empty(size * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)


@lru_cache(maxsize=256)
def _least_kept(threshold: float, inclusive: bool, itemsize: int) -> float:
    """The least float64 |x - base| that a limit keeps: the least that rounds to a kept value of the blocks' type.

    The difference of two float32 values, rounded to float64 first, rounds to the same float32.
    """
    with np.errstate(all="ignore"):
        if itemsize == 8:
            return threshold if inclusive else float(np.nextafter(threshold, np.inf))
        infinity = np.float32(np.inf)
        least = np.float32(threshold)
        if not inclusive:
            least = np.nextafter(least, infinity)
        if least == 0:
            return 0.0
        below = np.nextafter(least, np.float32(0))
        upper = float(least) if least < infinity else 2.0**128
        middle = (float(below) + upper) / 2
        is_even = int(least.view(np.uint32)) % 2 == 0  # then the middle rounds up to it
        return middle if is_even else float(np.nextafter(middle, np.inf))
