"""The exact k-th largest magnitude against a sort, whatever the values and however well a sample guesses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from method_harness import to_numpy

from raymerge.compute import open_operations, selection
from raymerge.compute.operations import Limit
from raymerge.compute.selection import Threshold, TopKeeper, find_thresholds, kept_count
from raymerge.dtypes import DType


class Tensor:
    """One input, cut into blocks; counts the passes over it."""

    def __init__(self, values: np.ndarray, block: int = 32768, device: str = "cpu") -> None:
        self.values, self.block, self.operations, self.passes = values, block, open_operations(device), 0

    def __call__(self, sample: bool = False) -> Iterator[list[tuple[Any, None]]]:
        self.passes += 1
        for start in range(0, self.values.size, self.block):
            block = self.values[start : start + self.block]
            yield [(self.load(block[np.arange(block.size) % 1024 < 64] if sample else block), None)]

    def load(self, block: np.ndarray) -> Any:
        wide = self.values.dtype == np.float64
        raw = bytearray(block.tobytes())
        return self.operations.decode(raw, DType.F64 if wide else DType.F32, wide=wide)

    def find(self, *ranks: int) -> tuple[Threshold, ...]:
        return find_thresholds(self.operations, self, [(0, rank) for rank in ranks], self.values.size)

    def mask(self, threshold: Threshold) -> np.ndarray:
        keeper = TopKeeper(threshold)
        masks = [to_numpy(keeper.mask(self.operations, x, None)) for ((x, _),) in self()]
        return np.concatenate(masks)


def check(tensor: Tensor, *ranks: int) -> None:
    order = np.argsort(-np.abs(tensor.values), kind="stable")
    for rank, threshold in zip(ranks, tensor.find(*ranks), strict=True):
        magnitudes = np.abs(tensor.values)
        assert threshold.value == magnitudes[order[rank - 1]]
        assert threshold.equal == np.count_nonzero(magnitudes == threshold.value)
        assert threshold.keep_equal == rank - np.count_nonzero(magnitudes > threshold.value)
        assert np.array_equal(np.flatnonzero(tensor.mask(threshold)), np.sort(order[:rank]))


def values_of(kind: str, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    if kind == "grid":
        return (np.rint(normal * 4) / 4).astype(np.float32)
    if kind == "equal":
        return np.full(n, -0.5, np.float32)
    if kind == "zeros":
        return np.where(rng.random(n) < 0.9, 0, normal).astype(np.float32)
    if kind == "heavy":
        return np.exp(normal * 15).astype(np.float32)
    if kind == "wide":
        return normal
    return normal.astype(np.float32)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("kind", ["normal", "grid", "equal", "zeros", "heavy", "wide"])
def test_thresholds_equal_a_sort(kind: str, device: str) -> None:
    n = 10_007
    tensor = Tensor(values_of(kind, n), 4096, device)
    check(tensor, 1, 2, 77, n // 2, n - 1, n)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> int:
    """A size from which tensors are sampled, smaller than usual."""
    monkeypatch.setattr(selection, "SAMPLE_FROM", 1 << 16)
    return 1 << 16


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("kind", ["normal", "grid", "equal", "zeros", "heavy", "wide"])
def test_sampled_tensors_are_guessed_and_found(kind: str, device: str, sampled: int) -> None:
    n = sampled + 2345
    check(Tensor(values_of(kind, n), device=device), n // 5, n // 2, n - 10)


@pytest.mark.parametrize("kind", ["normal", "grid", "wide"])
def test_two_passes_find_a_threshold_of_a_large_tensor(kind: str) -> None:
    tensor = Tensor(values_of(kind, 1 << 22), 1 << 20)
    tensor.find(1 << 21)
    assert tensor.passes <= (4 if kind == "wide" else 2)


@pytest.mark.parametrize("place", ["above", "below"])
def test_a_sample_that_misleads_costs_passes_but_no_exactness(place: str, sampled: int) -> None:
    """Of every 1024 elements the first 64, which the sample sees, are far from the others."""
    values = values_of("normal", sampled)
    values.reshape(-1, 1024)[:, :64] *= np.float32(1e6 if place == "above" else 1e-6)
    tensor = Tensor(values)
    check(tensor, sampled // 2)
    tensor.passes = 0
    tensor.find(sampled // 2)
    assert 2 < tensor.passes <= 4


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False)),
    st.floats(0, 1),
    st.integers(1, 3),
)
def test_any_values_and_any_share(values: np.ndarray, share: float, blocks: int) -> None:
    check(Tensor(values, -(-values.size // blocks)), max(1, int(share * values.size)))


def test_nan_counts_as_the_largest() -> None:
    tensor = Tensor(np.array([1, np.nan, -3, np.inf, 2], np.float32))
    (threshold,) = tensor.find(3)
    assert threshold.value == 3
    assert tensor.mask(threshold).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("density", "count", "kept"),
    [
        (0.5, 7, 3),
        (1.0, 7, 7),
        (2.0, 7, 7),
        (0.0, 7, 0),
        (-1.0, 7, 0),
        (1e-9, 7, 1),
        (0.1, 30, 3),
        (0.7, 10, 7),
        (1, 0, 0),
    ],
)
def test_kept_counts(density: float, count: int, kept: int) -> None:
    assert kept_count(density, count) == kept


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.uint32, 2 * 65, elements=st.integers(0, 0x7F7FFFFF) | st.integers(0x3F800000, 0x3F80000F)),
    st.integers(0, 64),
    st.integers(-1, 1),
    st.booleans(),
)
def test_a_limit_keeps_what_its_mask_keeps(bits: np.ndarray, place: int, off: int, inclusive: bool) -> None:
    """Though it looks at float64 differences, of float32 values whose own difference rounds to the threshold."""
    x, base = bits.view(np.float32).reshape(2, 65)
    with np.errstate(all="ignore"):
        magnitude = np.abs(x[place] - base[place])
        threshold = np.nextafter(magnitude, np.float32(np.inf if off > 0 else 0)) if off else magnitude
    assume(np.isfinite(threshold))
    operations = open_operations()
    mask = operations.top_mask(x, base, float(threshold), 65 if inclusive else 0)
    limit = Limit(threshold=float(threshold), inclusive=inclusive)
    kept = [operations.masked_sum([x], base, [each], [1.0]) for each in (mask, limit)]
    assert kept[0].tobytes() == kept[1].tobytes()


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize(("lower", "upper"), [(None, True), (True, True), (True, False), (False, True), (False, False)])
def test_a_band_keeps_what_its_mask_keeps(device: str, has_base: bool, lower: bool | None, upper: bool) -> None:
    """Magnitudes on a grid, so that some lie on both ends; NaN lies above them, zero below."""
    operations = open_operations(device)
    values = np.random.default_rng(5).integers(-40, 40, (2, 3000)).astype(np.float32) / 8
    values[:, ::97], values[:, 1::97] = np.nan, np.inf
    x, base = (operations.decode(each.tobytes(), DType.F32) for each in values)
    base = base if has_base else None
    inner = Limit(threshold=3.0, inclusive=upper)
    outer = Limit(threshold=0.0, inclusive=True) if lower is None else Limit(threshold=1.0, inclusive=lower)
    band = replace(outer, below=inner)
    mask = operations.write_mask(band, x, base)
    kept = [np.asarray(operations.masked_sum([x], base, [each], [1.0])) for each in (mask, band)]
    assert kept[0].tobytes() == kept[1].tobytes()
    with np.errstate(all="ignore"):
        magnitude = np.abs(values[0] - values[1]) if has_base else np.abs(values[0])
        inside = (magnitude >= outer.threshold) if outer.inclusive else (magnitude > outer.threshold)
        expected = inside & ((magnitude < 3) if upper else (magnitude <= 3))
    np.testing.assert_array_equal(np.asarray(mask) != 0, expected)
