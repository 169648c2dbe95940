"""TIES elections against their definition in numpy, to the last bit, for any number of inputs and on both devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from raymerge.compute import open_operations
from raymerge.compute.operations import VOTE_ROUNDING, WEIGHT_ROUNDING
from raymerge.dtypes import DType

N = 2 * 1024 + 77  # a last tile that is not full
STEP = 2.0**-9  # of a grid that changes lie on, so that votes tie and cancel
KINDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"divide": False},
    "mean by count": {"count_votes": True},
    "sum by count": {"divide": False, "count_votes": True},
    "mean of gains": {"gains": True},
    "sum of gains": {"divide": False, "gains": True},
}


def models(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """float32 values that bfloat16 holds; some changes are not finite."""
    rng = np.random.default_rng(count)
    base = rng.integers(-64, 64, N) * STEP
    x = [(base + rng.integers(-2, 3, N) * STEP).astype(np.float32) for _ in range(count)]
    x[-1][::97], x[0][5::211] = np.inf, np.nan
    return x, base.astype(np.float32)


def elected(
    terms: np.ndarray, weights: Sequence[float], gains: Sequence[float], *, divide: bool, by_count: bool
) -> Any:
    """The sum of the winning votes in float64, by the sum of their weights where asked."""

    def sides(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plus, minus = np.zeros(N), np.zeros(N)
        for vote in votes:
            plus, minus = plus + np.where(vote < 0, 0, vote), minus - np.where(vote > 0, 0, vote)
        return plus, minus

    plus, minus = sides(np.nan_to_num(np.sign(terms)) if by_count else terms)
    is_minus = minus - plus > VOTE_ROUNDING * minus
    gained = sides(np.array([gain * term for gain, term in zip(gains, terms, strict=True)]))
    total = np.where(is_minus, -gained[1], gained[0])
    if not divide:
        return total
    share = np.zeros(N)
    for term, weight in zip(terms, weights, strict=True):
        share = share + np.where(np.where(is_minus, term < 0, term > 0), weight, 0.0)
    return total / np.where(np.abs(share) > sum(map(abs, weights)) * WEIGHT_ROUNDING, share, 1.0)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_elections_are_what_their_definition_says(kind: str, count: int, device: str) -> None:
    options = dict(KINDS[kind])
    x, base = models(count)
    weights = [(0.3, 0.3, -0.3, 0.7)[k % 4] for k in range(count)]  # some cancel
    gains = [0.25 * (k + 1) for k in range(count)] if options.pop("gains", False) else [1.0] * count
    with np.errstate(all="ignore"):
        terms = np.array([weight * (each.astype(np.float64) - base) for each, weight in zip(x, weights, strict=True)])
        by_count = options.get("count_votes", False)
        found = elected(terms, weights, gains, divide=options.get("divide", True), by_count=by_count)
        expected = (base + 0.75 * found).astype(np.float32)

    operations = open_operations(device)
    *arrays, b = [operations.decode(each.tobytes(), DType.F32) for each in (*x, base)]
    if "of gains" in kind:
        options["gains"] = gains
    merged = operations.elect(arrays, b, [None] * count, weights, weights, factor=0.75, **options)
    stored = bytearray(4 * N)
    operations.encode(merged, DType.F32, stored)
    np.testing.assert_array_equal(np.frombuffer(stored, np.float32), expected)
