"""Operations on torch tensors of any device: the same arithmetic in the same order as the kernels for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raymerge.compute.operations import VOTE_ROUNDING, WEIGHT_ROUNDING, Array, Buffer, Mask, Operations
from raymerge.compute.random_bits import GOLDEN, MIX_1, MIX_2
from raymerge.compute.sums import CHUNK_ELEMENTS, LANES
from raymerge.dtypes import DType

_STORED = {DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32, DType.F64: torch.float64}
_SIGN = 1 << 63


class TorchOperations(Operations):
    """See Operations. Arrays are torch tensors on the device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def decode(self, raw: Buffer, dtype: DType, out: Array | None = None, *, wide: bool = False) -> Array:
        stored_type = _STORED[dtype]
        stored = torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(stored_type)
        if out is None:
            return stored.to(self._device).to(torch.float64 if wide else torch.float32)
        out.copy_(stored)
        return out

    def encode(self, array: Array, dtype: DType, out: Buffer) -> int:
        if array.dtype == torch.float64 and dtype in {DType.F16, DType.BF16}:
            array = _narrow_to_odd(array)
        stored = array.to(_STORED[dtype])
        bad = int((~torch.isfinite(stored)).sum())
        np.copyto(np.frombuffer(out, np.uint8), stored.cpu().view(torch.uint8).numpy())
        return bad

    def deltas(self, x: Sequence[Array], base: Array) -> tuple[Array, ...]:
        return tuple(each - base for each in x)

    def weighted_sum(self, coefficients: Sequence[float], arrays: Sequence[Array]) -> Array:
        total = float(coefficients[0]) * arrays[0].double()
        for c, a in zip(coefficients[1:], arrays[1:], strict=True):
            total += float(c) * a.double()
        return total.to(arrays[0].dtype)

    def masked_sum(
        self,
        x: Sequence[Array],
        base: Array | None,
        masks: Sequence[Mask],
        coefficients: Sequence[float],
        factor: float = 1.0,
    ) -> Array:
        total = torch.zeros_like(x[0], dtype=torch.float64)
        for each, mask, c in zip(x, masks, coefficients, strict=True):
            total += _term(each, base, mask, c)
        return _finish(total, base, factor, x[0])

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
        terms = [_term(each, base, mask, c) for each, mask, c in zip(x, masks, coefficients, strict=True)]
        votes, size = torch.zeros_like(terms[0]), torch.zeros_like(terms[0])
        for term in terms:
            votes += term.sign() if count_votes else term
            size += 0.0 if count_votes else term.abs()
        positive = ~(votes < size * -VOTE_ROUNDING)
        total, share = torch.zeros_like(votes), torch.zeros_like(votes)
        for term, weight in zip(terms, weights, strict=True):
            agrees = torch.where(positive, term > 0, term < 0) | term.isnan()
            total += torch.where(agrees, term, 0.0)
            share += torch.where(agrees, float(weight), 0.0)
        if divide:
            tiny = sum(abs(weight) for weight in weights) * WEIGHT_ROUNDING
            total /= torch.where(share.abs() > tiny, share, 1.0)
        return _finish(total, base, factor, x[0])

    def histogram(self, x: Array, base: Array | None, digit: int, prefix: int) -> NDArray[np.int64]:
        magnitude = _magnitudes(x, base)
        bits = magnitude.view(torch.int32).long() if x.dtype == torch.float32 else magnitude.view(torch.int64)
        shift = x.dtype.itemsize * 8 - 16 * (digit + 1)
        above = bits >> shift
        if digit > 0:
            above = above[above >> 16 == prefix]
        counts: NDArray[np.int64] = torch.bincount(above & 0xFFFF, minlength=1 << 16).cpu().numpy()
        return counts

    def top_mask(self, x: Array, base: Array | None, threshold: float, cut: int) -> Mask:
        magnitude = _magnitudes(x, base)
        mask = ~(magnitude <= threshold)
        mask[:cut] |= magnitude[:cut] == threshold
        return mask.to(torch.uint8)

    def count_equal(self, x: Array, base: Array | None, threshold: float) -> int:
        return int((_magnitudes(x, base) == threshold).sum())

    def index_after_equals(self, x: Array, base: Array | None, threshold: float, wanted: int) -> int:
        places = torch.nonzero(_magnitudes(x, base) == threshold)
        return int(places[wanted - 1]) + 1

    def no_mask(self, count: int) -> Mask:
        return torch.zeros(count, dtype=torch.uint8, device=self._device)

    def random_mask(self, key: int, start: int, count: int, limit: int) -> Mask:
        if limit >= 1 << 64:
            return torch.ones(count, dtype=torch.uint8, device=self._device)
        index = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=self._device)
        z = index * _signed(GOLDEN) + _signed(key)
        z = (z ^ _shifted(z, 30)) * _signed(MIX_1)
        z = (z ^ _shifted(z, 27)) * _signed(MIX_2)
        z = z ^ _shifted(z, 31)
        return ((z ^ _signed(_SIGN)) < _signed(limit ^ _SIGN)).to(torch.uint8)  # compares as unsigned

    def chunk_gram(self, x: Sequence[Array], base: Array | None) -> NDArray[np.float64]:
        d = [_chunked(each.double() if base is None else each.double() - base.double()) for each in x]
        count = len(x)
        out = np.empty((len(d[0]), count, count))
        for i in range(count):
            for j in range(i + 1):
                out[:, i, j] = out[:, j, i] = _add_chunks(d[i], d[j]).cpu().numpy()
        return out

    def chunk_absolute_sums(self, x: Array, base: Array | None, mask: Mask) -> NDArray[np.float64]:
        d = _chunked(_term(x, base, mask, 1.0).abs())
        sums: NDArray[np.float64] = _add_chunks(d, torch.ones_like(d)).cpu().numpy()
        return sums


def _magnitudes(x: Array, base: Array | None) -> Array:
    return (x if base is None else x - base).abs()


def _term(x: Array, base: Array | None, mask: Mask, coefficient: float) -> Array:
    term = float(coefficient) * (x.double() if base is None else x.double() - base.double())
    return term if mask is None else torch.where(mask != 0, term, 0.0)


def _finish(total: Array, base: Array | None, factor: float, like: Array) -> Array:
    total = float(factor) * total
    return (total if base is None else base.double() + total).to(like.dtype)


def _signed(value: int) -> int:
    """An unsigned 64-bit integer as the signed one of the same bits: torch multiplies and adds those, modulo 2^64."""
    return value - (1 << 64) if value & _SIGN else value


def _shifted(z: Array, bits: int) -> Array:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _chunked(values: Array) -> Array:
    """Values as (chunks, steps, lanes), padded with zeros, which change no sum."""
    chunks = -(-len(values) // CHUNK_ELEMENTS)
    padded = torch.nn.functional.pad(values, (0, chunks * CHUNK_ELEMENTS - len(values)))
    return padded.view(chunks, CHUNK_ELEMENTS // LANES, LANES)


def _add_chunks(a: Array, b: Array) -> Array:
    """Sums of products over each chunk: lane by lane in element order, then the lanes pairwise."""
    lanes = torch.zeros_like(a[:, 0])
    for step in range(a.shape[1]):
        lanes += a[:, step] * b[:, step]
    half = LANES // 2
    while half:
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
        half //= 2
    return lanes[:, 0]


def _narrow_to_odd(values: Array) -> Array:
    """float64 to float32, inexact results to the odd neighbour: rounding those again, to 16 bits, rounds once."""
    near = values.float()
    back = near.double()
    bits = near.view(torch.int32)
    odd = (bits - (back.abs() > values.abs()).int()) | 1
    return torch.where((back != values) & ~values.isnan(), odd, bits).view(torch.float32)
