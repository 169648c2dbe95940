"""Operations on numpy arrays, by numba kernels and numpy. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymerge.compute import kernels  # first: it settles numba's cache folder  # isort: skip

import numpy as np
from numpy.typing import NDArray

from raymerge.compute.operations import WEIGHT_ROUNDING, Array, Buffer, Mask, Operations
from raymerge.compute.sums import CHUNK_ELEMENTS
from raymerge.dtypes import DType

_STORED: dict[DType, Any] = {DType.F16: np.float16, DType.BF16: np.uint16, DType.F32: np.float32, DType.F64: np.float64}
_NO_MASK = np.empty(0, np.uint8)


class CpuOperations(Operations):
    """See Operations. Arrays are numpy's."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[str, Any], NDArray[Any]] = {}

    def decode(self, raw: Buffer, dtype: DType, out: Array | None = None, *, wide: bool = False) -> Array:
        stored = np.frombuffer(raw, _STORED[dtype])
        if out is None:
            out = np.empty(stored.size, np.float64 if wide else np.float32)
        if dtype is DType.BF16 and out.dtype == np.float32:
            kernels.decode_bf16(stored, out.view(np.uint32))
            return out
        if dtype is DType.BF16:
            stored = self.decode(raw, dtype, self._reuse("decode", np.float32, stored.size))
        with np.errstate(all="ignore"):  # of a signalling NaN
            np.copyto(out, stored, casting="same_kind")
        return out

    def encode(self, array: Array, dtype: DType, out: Buffer) -> int:
        stored = np.frombuffer(out, _STORED[dtype])
        if dtype is DType.BF16:
            return int(kernels.encode_bf16(self._narrow(array).view(np.uint32), stored))
        with np.errstate(all="ignore"):
            np.copyto(stored, array, casting="same_kind")
        if dtype is DType.F16:
            return int(np.count_nonzero((stored.view(np.uint16) & 0x7C00) == 0x7C00))
        return int(kernels.count_nonfinite(stored))

    def _narrow(self, array: NDArray[Any]) -> NDArray[np.float32]:
        if array.dtype == np.float32:
            return array
        narrow = self._reuse("encode", np.float32, array.size)
        kernels.narrow_to_odd(array, narrow, narrow.view(np.uint32))
        return narrow

    def deltas(self, x: Sequence[Array], base: Array) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return tuple(each - base for each in x)

    def weighted_sum(self, coefficients: Sequence[float], arrays: Sequence[Array]) -> Array:
        out = np.empty_like(arrays[0])
        kernels.weighted_sum(_addresses(arrays), np.array(coefficients, np.float64), out)
        return out

    def masked_sum(
        self,
        x: Sequence[Array],
        base: Array | None,
        masks: Sequence[Mask],
        coefficients: Sequence[float],
        factor: float = 1.0,
    ) -> Array:
        out = np.empty_like(x[0])
        kernels.masked_sum(
            _addresses(x), _addresses(masks), np.array(coefficients, np.float64), *_base(base, x[0]), float(factor), out
        )
        return out

    def elect(
        self,
        x: Sequence[Array],
        base: Array | None,
        masks: Sequence[Mask],
        coefficients: Sequence[float],
        weights: Sequence[float],
        *,
        factor: float = 1.0,
        divide: bool = True,
        count_votes: bool = False,
    ) -> Array:
        out = np.empty_like(x[0])
        tiny = sum(abs(weight) for weight in weights) * WEIGHT_ROUNDING
        kernels.elect(
            _addresses(x),
            _addresses(masks),
            np.array(coefficients, np.float64),
            np.array(weights, np.float64),
            *_base(base, x[0]),
            float(factor),
            divide,
            count_votes,
            tiny,
            out,
        )
        return out

    def histogram(self, x: Array, base: Array | None, digit: int, prefix: int) -> NDArray[np.int64]:
        values = self._reuse("histogram", x.dtype, kernels.TILE)
        bits = values.view(np.uint32 if x.dtype == np.float32 else np.uint64)
        counts = np.zeros(1 << 16, np.int32)
        shift = x.dtype.itemsize * 8 - 16 * (digit + 1)
        if digit == 0:
            kernels.histogram_high(x, *_base(base, x), bits, values, shift, counts)
        else:
            kernels.histogram_digit(x, *_base(base, x), bits, values, shift, prefix, counts)
        return counts.astype(np.int64)

    def top_mask(self, x: Array, base: Array | None, threshold: float, cut: int) -> Mask:
        out = np.empty(x.size, np.uint8)
        kernels.top_mask(x, *_base(base, x), x.dtype.type(threshold), cut, out)
        return out

    def count_equal(self, x: Array, base: Array | None, threshold: float) -> int:
        return int(kernels.count_equal(x, *_base(base, x), x.dtype.type(threshold)))

    def index_after_equals(self, x: Array, base: Array | None, threshold: float, wanted: int) -> int:
        return int(kernels.index_after_equals(x, *_base(base, x), x.dtype.type(threshold), wanted))

    def no_mask(self, count: int) -> Mask:
        return np.zeros(count, np.uint8)

    def random_mask(self, key: int, start: int, count: int, limit: int) -> Mask:
        out = np.empty(count, np.uint8)
        if limit >= 1 << 64:
            out[:] = 1
        else:
            kernels.random_mask(np.uint64(key), np.uint64(start), np.uint64(limit), out)
        return out

    def chunk_gram(self, x: Sequence[Array], base: Array | None) -> NDArray[np.float64]:
        count = len(x)
        out = np.empty((_chunks(x[0]), count, count))
        sums = np.empty(len(out))
        for i in range(count):
            for j in range(i + 1):
                kernels.chunk_dots(x[i], x[j], *_base(base, x[0]), sums)
                out[:, i, j] = out[:, j, i] = sums
        return out

    def chunk_absolute_sums(self, x: Array, base: Array | None, mask: Mask) -> NDArray[np.float64]:
        out = np.empty(_chunks(x))
        kernels.chunk_absolute_sums(x, *_base(base, x), _NO_MASK if mask is None else mask, mask is not None, out)
        return out

    def _reuse(self, use: str, dtype: Any, size: int) -> NDArray[Any]:
        """Scratch that holds until the next call with the same use and type."""
        scratch = self._scratch.get((use, dtype))
        if scratch is None or scratch.size < size:
            scratch = self._scratch[use, dtype] = np.empty(size, dtype)
        return scratch[:size]


def _addresses(arrays: Sequence[Any]) -> NDArray[np.uintp]:
    """Where the arrays lie; 0 for None. The caller keeps them alive. They must be contiguous."""
    return np.array([0 if each is None else each.ctypes.data for each in arrays], np.uintp)


def _base(base: Array | None, like: Array) -> tuple[Array, bool]:
    return (like, False) if base is None else (base, True)


def _chunks(x: NDArray[Any]) -> int:
    return -(-x.size // CHUNK_ELEMENTS)
