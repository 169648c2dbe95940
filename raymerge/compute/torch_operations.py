"""Operations on torch tensors of any device: the same arithmetic in the same order as the kernels for the CPU."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from raymerge.compute.operations import (
    PROBABILITY_FLOOR,
    VOTE_ROUNDING,
    WEIGHT_ROUNDING,
    Array,
    Buffer,
    Limit,
    Mask,
    Operations,
)
from raymerge.compute.random_bits import GOLDEN, LOW_BITS, MIX_1, MIX_2, rank_limits, splitmix
from raymerge.compute.sums import CHUNK_ELEMENTS, LANES
from raymerge.dtypes import DType
from raymerge.errors import Problem, UsageError

_STORED = {DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32, DType.F64: torch.float64}
_SIGN = 1 << 63


class TorchOperations(Operations):
    """See Operations. Arrays are torch tensors on the device; nothing is lent, so no `out` is ever given."""

    def __init__(self, device: str) -> None:
        """Raises UsageError where this torch has no such device, or the machine none of that number."""
        self._device = torch.device(device)
        try:
            torch.empty(1, device=self._device)
        except (AssertionError, RuntimeError) as error:  # what torch says so with depends on how it was built
            message = f"found no {device} on {platform.node()}: {str(error).splitlines()[0]}"
            remedy = "use the cpu, or a machine with a GPU and a torch that was built for it"
            raise UsageError(Problem(subject="device", message=message, remedy=remedy)) from error

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
        bad = self.count_nonfinite(stored)
        np.copyto(np.frombuffer(out, np.uint8), stored.cpu().view(torch.uint8).numpy())
        return bad

    def deltas(self, x: Sequence[Array], base: Array) -> tuple[Array, ...]:
        return tuple(each - base for each in x)

    def count_nonfinite(self, array: Array) -> int:
        return int((~torch.isfinite(array)).sum())

    def weighted_sum(
        self,
        coefficients: Sequence[float],
        arrays: Sequence[Array],
        *,
        out: Array | None = None,  # noqa: ARG002
    ) -> Array:
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
        *,
        out: Array | None = None,  # noqa: ARG002
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
        gains: Sequence[float] | None = None,
        out: Array | None = None,  # noqa: ARG002
    ) -> Array:
        terms = [_term(each, base, mask, c) for each, mask, c in zip(x, masks, coefficients, strict=True)]
        plus, minus = _sides(terms)
        deciding = _sides([term.sign() for term in terms]) if count_votes else (plus, minus)
        winning = (plus, minus) if gains is None else _sides(terms, gains)
        is_minus = deciding[1] - deciding[0] > VOTE_ROUNDING * deciding[1]
        total = torch.where(is_minus, -winning[1], winning[0])
        share = torch.zeros_like(plus)
        for term, weight in zip(terms, weights, strict=True):
            wins = torch.where(is_minus, term < 0, term > 0)
            share += float(weight) * wins.double()  # Python numbers alone would make a float32
        if divide:
            tiny = sum(abs(weight) for weight in weights) * WEIGHT_ROUNDING
            total = total / torch.where(share.abs() > tiny, share, 1.0)
        return _finish(total, base, factor, x[0])

    def empty_counts(self, bins: int, most: int) -> Array:  # noqa: ARG002  bincount has 64 bits in any case
        return torch.zeros(bins + 1, dtype=torch.int64, device=self._device)

    def read_counts(self, counts: Array) -> NDArray[np.int64]:
        table: NDArray[np.int64] = counts.cpu().numpy()
        return table

    def count_magnitudes(self, x: Array, base: Array | None, counts: Array, *, low: int, shift: int) -> int:
        bits = _bits(_magnitudes(x, base))
        above_low = bits[bits >= low] - low
        places = (above_low >> shift).clamp(max=len(counts) - 1)
        counts += torch.bincount(places, minlength=len(counts))
        return int(((places < len(counts) - 1) & (above_low & ((1 << shift) - 1) != 0)).sum()) if shift else 0

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
        return (self._ordered_bits(key, start, count) < _signed(limit ^ _SIGN)).to(torch.uint8)

    def chunk_gram(self, x: Sequence[Array], base: Array | None, chunk: int = CHUNK_ELEMENTS) -> NDArray[np.float64]:
        d = [_by_lane(_term(each, base, None, 1.0), chunk) for each in x]
        count = len(x)
        out = np.empty((len(d[0]), count, count))
        for i in range(count):
            for j in range(i + 1):
                out[:, i, j] = out[:, j, i] = _add_products(d[i], d[j]).cpu().numpy()
        return out

    def chunk_sums(
        self, x: Array, base: Array | None, mask: Mask, *, squared: bool = False, chunk: int = CHUNK_ELEMENTS
    ) -> NDArray[np.float64]:
        d = _by_lane(_term(x, base, mask, 1.0).abs(), chunk)
        sums: NDArray[np.float64] = _add_products(d, d if squared else torch.ones_like(d)).cpu().numpy()
        return sums

    def _chunk_norms(
        self, x: Sequence[Array], base: Array | None, masks: Sequence[Mask], chunk: int
    ) -> NDArray[np.float64]:
        norms = []
        for each, mask in zip(x, masks, strict=True):
            magnitude = (each if base is None else each - base).abs()
            kept = _is_kept(each, base, mask)
            part = magnitude if kept is None else torch.where(kept, magnitude, 0.0)
            norms.append([_add_by_fours(_by_lane(values, chunk)).cpu().numpy() for values in (magnitude, part)])
        return np.moveaxis(np.array(norms), 2, 0)

    def mask_difference(self, kept: Mask, dropped: Mask) -> Mask:
        return kept & ~dropped

    def rank_limits(self, density: float, epsilon: float, row_length: int) -> Array:
        ordered = rank_limits(density, epsilon, row_length) ^ np.uint64(_SIGN)
        return torch.from_numpy(ordered.view(np.int64)).to(self._device)

    def rank_mask(
        self,
        x: Array,
        base: Array | None,
        limits: Array,
        *,
        key: int,
        start: int,
        norms: bool = False,  # noqa: ARG002
    ) -> Mask:
        rows = _magnitudes(x, base).view(-1, len(limits))
        order = rows.argsort(dim=1, descending=True, stable=True)
        by_element = torch.empty_like(order).scatter_(1, order, limits.expand_as(order))
        return (self._ordered_bits(key, start, len(x)) < by_element.view(-1)).to(torch.uint8)

    def delta_products(self, a: Array, b: Array, base: Array | None) -> Array:
        c = 0.0 if base is None else base.double()
        return (a.double() - c) * (b.double() - c)

    def weighted_sum_by(self, coefficients: Sequence[Array], arrays: Sequence[Array]) -> Array:
        total = torch.zeros_like(arrays[0], dtype=torch.float64)
        for c, a in zip(coefficients, arrays, strict=True):
            total += c * a.double()
        return total.to(arrays[0].dtype)

    def repeat(self, values: Sequence[float], times: int) -> Array:
        return torch.tensor(values, dtype=torch.float64, device=self._device).repeat_interleave(times)

    def cycle(self, values: Sequence[float], start: int, count: int) -> Array:
        index = torch.arange(start, start + count, device=self._device) % len(values)
        return torch.tensor(values, dtype=torch.float64, device=self._device)[index]

    def row_divergences(self, x: Array, base: Array, row_length: int) -> NDArray[np.float64]:
        p = torch.softmax(x.double().view(-1, row_length), dim=1) + PROBABILITY_FLOOR
        q = torch.softmax(base.double().view(-1, row_length), dim=1) + PROBABILITY_FLOOR
        divergences: NDArray[np.float64] = (p * (p / q).log()).sum(dim=1).cpu().numpy()
        return divergences

    def row_scaled_magnitudes(self, x: Array, base: Array, factors: Sequence[float], row_length: int) -> Array:
        return ((x.double() - base.double()).abs() * self.repeat(factors, row_length)).to(x.dtype)

    def spread(self, x: Sequence[Array]) -> Array:
        first, count = x[0].double(), len(x)
        mean = torch.zeros_like(first)
        total = torch.zeros_like(first)
        for each in x:
            mean += (each.double() - first) / count
        for each in x:
            e = (each.double() - first) - mean
            total += e * e
        return (total / count).sqrt().to(x[0].dtype)

    def step_towards(self, x: Array, base: Array, step: float, floor: float) -> Array:
        b = base.double()
        d = x.double() - b
        share = (float(step) / d.abs().clamp(min=floor)).clamp(0.0, 1.0)
        return (b + share * d).to(x.dtype)

    def active_counts(self, x: Sequence[Array], base: Array, epsilon: float) -> list[tuple[int, int]]:
        active = [~((each.double() - base.double()).abs() <= epsilon) for each in x]
        number = torch.stack(active).sum(dim=0)
        return [(int((each & (number > 1)).sum()), int((each & (number == 1)).sum())) for each in active]

    def active_mean(self, x: Sequence[Array], base: Array, epsilon: float, gains: Sequence[float]) -> Array:
        b = base.double()
        total, gain, number = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b)
        for each, own_gain in zip(x, gains, strict=True):
            d = each.double() - b
            active = ~(d.abs() <= epsilon)
            total += torch.where(active, d, 0.0)
            gain = torch.where(active, float(own_gain), gain)
            number += active
        return (b + torch.where(number == 1, total * gain, total / number.clamp(min=1))).to(base.dtype)

    def _ordered_bits(self, key: int, start: int, count: int) -> Array:
        """The random bits of `count` elements, shifted down by 2^63: signed integers in the order of the unsigned."""
        element = torch.arange(start, start + count, dtype=torch.int64, device=self._device)
        high = _splitmix(key, element >> 2) >> 16 * (element & 3)
        low = _shifted(_splitmix(splitmix(key, -1), element), 64 - LOW_BITS)
        return (high << LOW_BITS | low) ^ _signed(_SIGN)


def _magnitudes(x: Array, base: Array | None) -> Array:
    return (x if base is None else x - base).abs()


def _bits(magnitudes: Array) -> Array:
    """The bits of non-negative floats, as int64."""
    return magnitudes.view(torch.int32 if magnitudes.dtype == torch.float32 else torch.int64).long()


def _term(x: Array, base: Array | None, mask: Mask, coefficient: float) -> Array:
    term = float(coefficient) * (x.double() if base is None else x.double() - base.double())
    kept = _is_kept(x, base, mask)
    return term if kept is None else torch.where(kept, term, 0.0)


def _is_kept(x: Array, base: Array | None, mask: Mask) -> Array | None:
    """Where a mask is set; None where it keeps everything."""
    if not isinstance(mask, Limit):
        return None if mask is None else mask != 0
    magnitude = _magnitudes(x, base)
    kept = ~_lies_under(magnitude, mask)
    return kept if mask.below is None else kept & _lies_under(magnitude, mask.below)


def _lies_under(magnitude: Array, limit: Limit) -> Array:
    return magnitude < limit.threshold if limit.inclusive else magnitude <= limit.threshold


def _sides(terms: Sequence[Array], gains: Sequence[float] | None = None) -> tuple[Array, Array]:
    """The sums of the magnitudes, times their gains, of the terms above 0 and of those below; NaN is in both."""
    plus, minus = torch.zeros_like(terms[0]), torch.zeros_like(terms[0])
    for i, term in enumerate(terms):
        gained = term if gains is None else float(gains[i]) * term
        plus += torch.where(term < 0, 0.0, gained)
        minus -= torch.where(term > 0, 0.0, gained)
    return plus, minus


def _finish(total: Array, base: Array | None, factor: float, like: Array) -> Array:
    total = float(factor) * total
    return (total if base is None else base.double() + total).to(like.dtype)


def _signed(value: int) -> int:
    """An unsigned 64-bit integer as the signed one of the same bits: torch multiplies and adds those, modulo 2^64."""
    return value - (1 << 64) if value & _SIGN else value


def _splitmix(seed: int, index: Array) -> Array:
    """See random_bits.splitmix."""
    z = (index + 1) * _signed(GOLDEN) + _signed(seed)
    z = (z ^ _shifted(z, 30)) * _signed(MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(MIX_2)
    return z ^ _shifted(z, 31)


def _shifted(z: Array, bits: int) -> Array:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _by_lane(values: Array, chunk: int) -> Array:
    """Values as (chunks, steps, lanes), padded with zeros, which change no sum."""
    chunks, steps = -(-len(values) // chunk), -(-chunk // LANES)
    rows = torch.nn.functional.pad(values, (0, chunks * chunk - len(values))).view(chunks, chunk)
    return torch.nn.functional.pad(rows, (0, steps * LANES - chunk)).view(chunks, steps, LANES)


def _add_by_fours(values: Array) -> Array:
    """Sums over each chunk: four steps of a lane in their own type, then as _add_products adds."""
    total = [reduce(torch.add, values[:, step : step + 4].unbind(1)) for step in range(0, values.shape[1], 4)]
    lanes = torch.stack(total, 1).double()
    return _add_products(lanes, torch.ones_like(lanes))


def _add_products(a: Array, b: Array) -> Array:
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
