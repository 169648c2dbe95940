"""Operations on numpy arrays, by numba kernels and numpy. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymerge.compute import kernels, random_kernels, rank_kernels, row_kernels  # isort: skip
from raymerge.compute import selection_kernels, sum_kernels, type_kernels  # isort: skip
# first, above: the kernels settle numba's cache folder

import numpy as np
from numpy.typing import NDArray

from raymerge.compute.jit import TILE
from raymerge.compute.kernel_arguments import addresses, as_base, as_inputs, as_masks, empty
from raymerge.compute.operations import (
    WEIGHT_ROUNDING,
    Array,
    Buffer,
    Drawn,
    Mask,
    Operations,
    PackedMask,
)
from raymerge.compute.random_bits import rank_limits
from raymerge.compute.sums import CHUNK_ELEMENTS
from raymerge.dtypes import DType

_STORED: dict[DType, Any] = {DType.F16: np.uint16, DType.BF16: np.uint16, DType.F32: np.float32, DType.F64: np.float64}
_SINGLE: np.dtype[Any] = np.dtype(np.float32)
_16_BIT = (DType.F16, DType.BF16)
_BF16_EXPONENT, _F16_EXPONENT = np.uint16(0x7F80), np.uint16(0x7C00)
_BITS: dict[Any, Any] = {np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}


class CpuOperations(Operations):
    """See Operations. Arrays are numpy's; those of uint16 hold bfloat16 codes, which most kernels decode on the way."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[str, Any], NDArray[Any]] = {}
        self._spare_counts: list[NDArray[Any]] = []  # tables of megabytes: fresh pages cost more than counting

    def decode(self, raw: Buffer, dtype: DType, out: Array | None = None, *, wide: bool = False) -> Array:
        stored = np.frombuffer(raw, _STORED[dtype])
        if out is None:
            out = empty(stored.size, np.float64 if wide else np.float32)
        if dtype in _16_BIT and out.dtype == np.float32:
            if dtype is DType.BF16:
                type_kernels.decode_bf16(stored, out.view(np.uint32))
            else:
                type_kernels.decode_f16(stored, out, out.view(np.uint32))
            return out
        if dtype in _16_BIT:
            stored = self.decode(raw, dtype, self._reuse("decode", np.float32, stored.size))
        with np.errstate(all="ignore"):  # of a signalling NaN
            np.copyto(out, stored, casting="same_kind")
        return out

    def view(self, raw: Buffer, dtype: DType) -> Array | None:
        if dtype is not DType.BF16:
            return None
        codes = np.frombuffer(raw, np.uint16)
        return codes if codes.flags.aligned else None

    def encode(self, array: Array, dtype: DType, out: Buffer) -> int:
        array = _floats(array)
        stored = np.frombuffer(out, _STORED[dtype])
        if dtype is DType.BF16:
            type_kernels.encode_bf16(self._narrow(array).view(np.uint32), stored)
            return self.count_nonfinite(stored)
        if dtype is DType.F16:
            small = self._reuse("small", np.float32, array.size)
            type_kernels.encode_f16(self._narrow(array).view(np.uint32), stored, small, small.view(np.uint32))
            return int(type_kernels.count_nonfinite_codes(stored, _F16_EXPONENT))
        with np.errstate(all="ignore"):
            np.copyto(stored, array, casting="same_kind")
        return self.count_nonfinite(stored)

    def _narrow(self, array: NDArray[Any]) -> NDArray[np.float32]:
        if array.dtype == np.float32:
            return array
        narrow = self._reuse("encode", np.float32, array.size)
        type_kernels.narrow_to_odd(array, narrow, narrow.view(np.uint32))
        return narrow

    def deltas(self, x: Sequence[Array], base: Array) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return tuple(_floats(each) - _floats(base) for each in x)

    def count_nonfinite(self, array: Array) -> int:
        if array.dtype == np.uint16:
            return int(type_kernels.count_nonfinite_codes(array, _BF16_EXPONENT))
        return int(type_kernels.count_nonfinite(array))

    def weighted_sum(
        self, coefficients: Sequence[float], arrays: Sequence[Array], *, out: Array | None = None
    ) -> Array:
        like, out = self._tile(arrays[0]), _results(arrays[0], out)
        kernels.weighted_sum(as_inputs(arrays), np.array(coefficients, np.float64), like, out)
        return out

    def masked_sum(
        self,
        x: Sequence[Array],
        base: Array | None,
        masks: Sequence[Mask],
        coefficients: Sequence[float],
        factor: float = 1.0,
        *,
        out: Array | None = None,
    ) -> Array:
        like, out = self._tile(x[0]), _results(x[0], out)
        kernels.masked_sum(
            as_inputs(x),
            as_masks(masks, like.dtype),
            np.array(coefficients, np.float64),
            *as_base(base, x[0]),
            float(factor),
            like,
            out,
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
        gains: Sequence[float] | None = None,
        out: Array | None = None,
    ) -> Array:
        like, out = self._tile(x[0]), _results(x[0], out)
        tiny = sum(abs(weight) for weight in weights) * WEIGHT_ROUNDING
        kernels.elect(
            as_inputs(x),
            as_masks(masks, like.dtype),
            np.array(coefficients, np.float64),
            np.array(gains or (), np.float64),
            gains is not None,
            np.array(weights, np.float64),
            *as_base(base, x[0]),
            float(factor),
            divide,
            count_votes,
            tiny,
            like,
            out,
        )
        return out

    def empty_counts(self, bins: int, most: int) -> Array:
        dtype = np.dtype(np.int32 if most < 1 << 31 else np.int64)  # the half of it stays in the cache
        for i, spare in enumerate(self._spare_counts):
            if spare.dtype == dtype and spare.size > bins:
                table = self._spare_counts.pop(i)[: bins + 1]
                table[:] = 0
                return table
        return np.zeros((1 << (bins - 1).bit_length()) + 1, dtype)[: bins + 1]

    def read_counts(self, counts: Array) -> NDArray[np.integer[Any]]:
        return counts  # type: ignore[no-any-return]

    def recycle_counts(self, counts: Array) -> None:
        self._spare_counts.append(counts.base)

    def magnitude_bits(self, x: Array) -> int:
        return 8 * _float_type(x).itemsize - 1

    def count_magnitudes(self, x: Array, base: Array | None, counts: Array, *, low: int, shift: int) -> int:
        values = self._tile(x)
        bits = values.view(_BITS[values.dtype])
        if low == 0 and (len(counts) - 1) << shift >= 1 << (8 * values.itemsize - 1):
            return int(selection_kernels.histogram_high(x, *as_base(base, x), bits, values, shift, counts))
        return int(selection_kernels.histogram_window(x, *as_base(base, x), bits, values, low, shift, counts))

    def top_mask(self, x: Array, base: Array | None, threshold: float, cut: int) -> Mask:
        out = empty(x.size, np.uint8)
        values = self._tile(x)
        exact = values.dtype.type(threshold)
        limit = exact if exact == threshold else np.float64(threshold)
        selection_kernels.top_mask(x, *as_base(base, x), limit, cut, values, out)
        return out

    def count_equal(self, x: Array, base: Array | None, threshold: float) -> int:
        limit = _float_type(x).type(threshold)
        return int(selection_kernels.count_equal(x, *as_base(base, x), limit))

    def index_after_equals(self, x: Array, base: Array | None, threshold: float, wanted: int) -> int:
        limit = _float_type(x).type(threshold)
        return int(selection_kernels.index_after_equals(x, *as_base(base, x), limit, wanted))

    def no_mask(self, count: int) -> Mask:
        return np.zeros(count, np.uint8)

    def random_mask(self, key: int, start: int, count: int, limit: int) -> Mask:
        out = empty(count, np.uint8)
        if limit >= 1 << 64:
            out[:] = 1
        else:
            random_kernels.random_mask(np.array((1, key, start, limit), np.uint64), out)
        return out

    def draw(self, key: int, start: int, count: int, limit: int, kept: PackedMask | None = None) -> Mask:  # noqa: ARG002
        return None if limit >= 1 << 64 else Drawn(key=key, start=start, limit=limit, kept=kept)

    def room_to_keep(self, count: int) -> PackedMask | None:
        return PackedMask(bits=np.empty(-(-count // 8), np.uint8))

    def chunk_gram(self, x: Sequence[Array], base: Array | None, chunk: int = CHUNK_ELEMENTS) -> NDArray[np.float64]:
        out = np.empty((-(-x[0].size // chunk), len(x), len(x)))
        like = self._tile(x[0])
        none = as_masks([None] * len(x), like.dtype)
        sum_kernels.chunk_gram(as_inputs(x), none, *as_base(base, x[0]), x[0].size, chunk, like, out)
        return out

    def chunk_sums(
        self, x: Array, base: Array | None, mask: Mask, *, squared: bool = False, chunk: int = CHUNK_ELEMENTS
    ) -> NDArray[np.float64]:
        out = np.empty(-(-x.size // chunk))
        like = self._tile(x)
        masks = as_masks((mask,), like.dtype)
        sum_kernels.chunk_sums(as_inputs((x,)), masks, *as_base(base, x), squared, x.size, chunk, like, out)
        return out

    def _chunk_norms(
        self, x: Sequence[Array], base: Array | None, masks: Sequence[Mask], chunk: int
    ) -> NDArray[np.float64]:
        n, like = x[0].size, self._tile(x[0])
        out = np.empty((-(-n // chunk), len(x), 2))
        sum_kernels.chunk_norms(as_inputs(x), as_masks(masks, like.dtype), *as_base(base, x[0]), n, chunk, like, out)
        return out

    def mask_difference(self, kept: Mask, dropped: Mask) -> Mask:
        return kept & ~dropped

    def rank_limits(self, density: float, epsilon: float, row_length: int) -> Array:
        return rank_limits(density, epsilon, row_length)

    def rank_mask(
        self, x: Array, base: Array | None, limits: Array, *, key: int, start: int, norms: bool = False
    ) -> Mask:
        values = self._reuse("rank", _float_type(x), limits.size)
        bits = values.view(_BITS[values.dtype])
        kept = self._reuse("kept", np.uint64, -(-x.size // 8)).view(np.uint8)
        out = empty(-(-x.size // 8), np.uint8)
        found = np.empty((x.size // max(limits.size, 1) if norms else 0, 2))
        draw = limits, np.uint64(key), np.uint64(start)
        rank_kernels.rank_mask(x, *as_base(base, x), *draw, values, bits, kept, out, found)
        return PackedMask(bits=out, norms=found if norms else None)

    def delta_products(self, a: Array, b: Array, base: Array | None) -> Array:
        c = 0.0 if base is None else _floats(base).astype(np.float64)
        a, b = _floats(a), _floats(b)
        return (a.astype(np.float64) - c) * (b.astype(np.float64) - c)

    def weighted_sum_by(self, coefficients: Sequence[Array], arrays: Sequence[Array]) -> Array:
        total = np.zeros(arrays[0].size)
        for c, a in zip(coefficients, arrays, strict=True):
            total += c * _floats(a)
        return total.astype(_float_type(arrays[0]))

    def repeat(self, values: Sequence[float], times: int) -> Array:
        return np.repeat(np.asarray(values, np.float64), times)

    def cycle(self, values: Sequence[float], start: int, count: int) -> Array:
        # numpy's own wrapping subtracts the length once for every time that an index goes round
        return np.asarray(values, np.float64)[np.arange(start, start + count) % len(values)]

    def row_divergences(self, x: Array, base: Array, row_length: int) -> NDArray[np.float64]:
        out = np.empty(x.size // row_length)
        row_kernels.row_divergences(_floats(x), _floats(base), row_length, out)
        return out

    def row_scaled_magnitudes(self, x: Array, base: Array, factors: Sequence[float], row_length: int) -> Array:
        out = empty(x.size, _float_type(x))
        row_kernels.row_scaled_magnitudes(_floats(x), _floats(base), np.asarray(factors, np.float64), row_length, out)
        return out

    def spread(self, x: Sequence[Array]) -> Array:
        x = [_floats(each) for each in x]
        out = empty(x[0].size, x[0].dtype)
        row_kernels.spread(addresses(x), out)
        return out

    def step_towards(self, x: Array, base: Array, step: float, floor: float) -> Array:
        out = empty(x.size, _float_type(x))
        row_kernels.step_towards(_floats(x), _floats(base), float(step), float(floor), out)
        return out

    def active_counts(self, x: Sequence[Array], base: Array, epsilon: float) -> list[tuple[int, int]]:
        shared, unique = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
        x = [_floats(each) for each in x]
        row_kernels.active_counts(addresses(x), _floats(base), float(epsilon), shared, unique)
        return list(zip(shared.tolist(), unique.tolist(), strict=True))

    def active_mean(self, x: Sequence[Array], base: Array, epsilon: float, gains: Sequence[float]) -> Array:
        x, base = [_floats(each) for each in x], _floats(base)
        out = empty(base.size, base.dtype)
        row_kernels.active_mean(addresses(x), base, float(epsilon), np.array(gains, np.float64), out)
        return out

    def _tile(self, x: Array) -> NDArray[Any]:
        return self._reuse("tile", _float_type(x), TILE)

    def _reuse(self, use: str, dtype: Any, size: int) -> NDArray[Any]:
        """Scratch that holds until the next call with the same use and type."""
        scratch = self._scratch.get((use, dtype))
        if scratch is None or scratch.size < size:
            scratch = self._scratch[use, dtype] = empty(size, dtype)
        return scratch[:size]


def _float_type(array: NDArray[Any]) -> np.dtype[Any]:
    """The type of the floats that an array holds, or codes for."""
    return _SINGLE if array.dtype == np.uint16 else array.dtype


def _results(x: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    return empty(x.size, _float_type(x)) if out is None else out


def _floats(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != np.uint16:
        return array
    out = empty(array.size, np.float32)
    type_kernels.decode_bf16(array, out.view(np.uint32))
    return out
