"""Masks by place in a row are those of a plain sort, however many magnitudes are equal or nearly so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from method_harness import written

from raymerge.compute import open_operations
from raymerge.compute.random_bits import element_bits, rank_limits

ROWS = 3
KEY, START = 0x1234567890ABCDEF, 1000


def truncated(values: np.ndarray) -> np.ndarray:
    """To bfloat16, still as float32."""
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def models(kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    base = truncated(rng.normal(0, 0.02, count))
    if kind == "far from a grid":
        return (base + rng.normal(0, 0.002, count)).astype(np.float32), base
    if kind == "equal":
        return base + np.float32(0.5), np.zeros(count, np.float32) + base
    if kind == "pairs on and off the grid":  # of the same bucket: turns are counted from behind those off it
        return np.where(rng.random(count) < 0.5, 0.5, 0.5 + 2**-20).astype(np.float32), np.zeros(count, np.float32)
    if kind == "equal, off the grid":  # more than turns settle: such rows are sorted
        return np.full(count, 0.1, np.float32), np.zeros(count, np.float32)
    if kind == "few values":
        return rng.integers(-3, 4, count).astype(np.float32), np.zeros(count, np.float32)
    if kind == "small beside large":  # all but a few in the last bucket, zeros among them
        small = rng.integers(-40, 41, count) * 1e-9 * rng.integers(0, 2, count)
        return np.where(rng.random(count) < 0.01, 1.0, small).astype(np.float32), np.zeros(count, np.float32)
    if kind == "mostly unchanged":
        return truncated(base + rng.normal(0, 2e-3, count) * (rng.random(count) < 0.3)), base
    step = {"steps of a grid": 2e-3, "one step of a grid": 2e-4, "less than a step": 2e-5}[kind]
    return truncated(base + rng.normal(0, step, count)), base


def places(magnitudes: np.ndarray) -> np.ndarray:
    order = np.argsort(-magnitudes, kind="stable")
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order))
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("row_length", [1, 5, 128, 1500, 4096])
@pytest.mark.parametrize(
    "kind",
    [
        "far from a grid",
        "steps of a grid",
        "one step of a grid",
        "less than a step",
        "equal",
        "equal, off the grid",
        "pairs on and off the grid",
        "few values",
        "small beside large",
        "mostly unchanged",
    ],
)
def test_masks_by_rank_are_those_of_a_sort(kind: str, row_length: int, device: str, dtype: Any) -> None:
    count = ROWS * row_length
    x, base = (each.astype(dtype) for each in models(kind, count))
    limits = rank_limits(0.5, 0.2, row_length)
    magnitudes = np.abs(x - base).reshape(ROWS, row_length)
    bits = np.array([element_bits(KEY, START + i) for i in range(count)], np.uint64).reshape(ROWS, row_length)
    expected = [draws < limits[places(row)] for draws, row in zip(bits, magnitudes, strict=True)]
    operations = open_operations(device)
    ours = operations.rank_limits(0.5, 0.2, row_length)
    if device != "cpu":
        import torch

        x, base = torch.from_numpy(x), torch.from_numpy(base)
    mask = written(operations.rank_mask(x, base, ours, key=KEY, start=START), count)
    assert np.array_equal(mask.reshape(ROWS, row_length), np.array(expected))


@pytest.mark.parametrize("base_as", ["codes", "floats", "none"])
@pytest.mark.parametrize("row_length", [1, 5, 128, 1500, 4096, 20_001])
@pytest.mark.parametrize(
    "kind",
    ["equal", "few values", "less than a step", "mostly unchanged", "one step of a grid", "steps of a grid"],
)
def test_masks_of_codes_are_those_of_a_sort(kind: str, row_length: int, base_as: str) -> None:
    count = ROWS * row_length
    x, base = (truncated(each) for each in models(kind, count))
    if base_as == "none":
        x, base = truncated(x - base), np.zeros(count, np.float32)
    codes = [np.ascontiguousarray(each.view(np.uint16)[1::2]) for each in (x, base)]
    limits = rank_limits(0.5, 0.4, row_length)
    magnitudes = np.abs(x - base).reshape(ROWS, row_length)
    bits = np.array([element_bits(KEY, START + i) for i in range(count)], np.uint64).reshape(ROWS, row_length)
    expected = [draws < limits[places(row)] for draws, row in zip(bits, magnitudes, strict=True)]
    given = {"codes": codes[1], "floats": base, "none": None}[base_as]
    mask = written(open_operations("cpu").rank_mask(codes[0], given, limits, key=KEY, start=START), count)
    assert np.array_equal(mask.reshape(ROWS, row_length), np.array(expected))


@pytest.mark.parametrize("row_length", [1, 5, 64, 300, 1300, 5632])
@pytest.mark.parametrize("form", ["codes", "codes beside floats", "codes alone", "float32", "float64", "float32 alone"])
def test_norms_that_masks_bring_along_are_those_counted_under_them(form: str, row_length: int) -> None:
    """To the last bit, beside others that bring none; also where a sum of four does not fit the blocks' type."""
    count = ROWS * row_length
    x, base = (truncated(each) for each in models("steps of a grid", count))
    x[0], x[-1] = 3e38, np.nan
    x, base = (truncated(each) for each in (x, base))
    codes = [np.ascontiguousarray(each.view(np.uint16)[1::2]) for each in (x, base)]
    wide = [each.astype(np.float64) for each in (x, base)]
    a, b = {
        "codes": (codes[0], codes[1]),
        "codes beside floats": (codes[0], base),
        "codes alone": (codes[0], None),
        "float32": (x, base),
        "float64": (wide[0], wide[1]),
        "float32 alone": (x, None),
    }[form]
    operations = open_operations("cpu")
    limits = operations.rank_limits(0.5, 0.2, row_length)
    bringing = operations.rank_mask(a, b, limits, key=KEY, start=START, norms=True)
    plain = operations.rank_mask(a, b, limits, key=KEY, start=START)
    assert bringing.norms is not None
    assert bringing.bits.tobytes() == plain.bits.tobytes()
    for chunk in (row_length, row_length + 1):
        found = operations.chunk_norms((a, a, a), b, (None, bringing, plain), chunk)
        expected = operations.chunk_norms((a, a, a), b, (None, plain, plain), chunk)
        assert found.shape == (-(-count // chunk), 3, 2)
        assert found.tobytes() == expected.tobytes()
    assert plain.norms is None


def test_turns_are_counted_beyond_what_16_bits_hold() -> None:
    count, place = 200_000, 1000
    x, base = np.ones(count, np.float32), np.zeros(count, np.float32)
    draws = np.array([element_bits(KEY, START + i) for i in range(count)], np.uint64)
    limits = np.where(np.arange(count) <= 2 * place, draws[place], draws[place] + np.uint64(1))  # its place decides
    mask = written(open_operations("cpu").rank_mask(x, base, limits, key=KEY, start=START), count)
    assert np.array_equal(mask, draws < limits)


@pytest.mark.parametrize("kind", ["far from a grid", "less than a step", "mostly unchanged", "equal, off the grid"])
@pytest.mark.parametrize("row_length", [7, 300, 4096, 70_001])
def test_limits_may_rise_along_the_places(kind: str, row_length: int) -> None:
    x, base = models(kind, row_length)
    limits = np.ascontiguousarray(rank_limits(0.5, 0.45, row_length)[::-1])
    draws = np.array([element_bits(KEY, START + i) for i in range(row_length)], np.uint64)
    mask = written(open_operations("cpu").rank_mask(x, base, limits, key=KEY, start=START), row_length)
    assert np.array_equal(mask, draws < limits[places(np.abs(x - base))])


@pytest.mark.parametrize("row_length", [7, 300, 4096])
def test_limits_whose_highest_bits_are_those_drawn_are_settled_by_the_others(row_length: int) -> None:
    draws = np.array([element_bits(KEY, START + i) for i in range(row_length)], np.uint64)
    own_places = places(draws.astype(np.float64))
    x, base = (row_length - own_places).astype(np.float32), np.zeros(row_length, np.float32)
    operations = open_operations("cpu")
    for above in (0, 1):
        limits = np.sort(draws)[::-1] + np.uint64(above)
        mask = written(operations.rank_mask(x, base, np.ascontiguousarray(limits), key=KEY, start=START), row_length)
        assert np.array_equal(mask, np.full(row_length, above))
