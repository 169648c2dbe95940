from __future__ import annotations

import numpy as np
import pytest

from raymerge.compute import open_operations, stream_key
from raymerge.compute.random_bits import element_bits, keep_limit, splitmix

DEVICES = ["cpu", "torch:cpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("start", [0, 12345, (1 << 40) + 7])
def test_kernels_follow_the_definition(device: str, start: int) -> None:
    key, limit = stream_key(0, 1, "model.norm.weight"), keep_limit(0.37)
    mask = np.asarray(open_operations(device).random_mask(key, start, 5000, limit))
    assert mask.tolist() == [element_bits(key, start + j) < limit for j in range(5000)]


def test_the_definition_is_splitmix64() -> None:
    """The first outputs of SplitMix64 seeded with 1234567, as published with its reference implementation."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix(1234567, e) for e in range(4)] == expected


def test_an_element_takes_16_bits_of_a_shared_output_and_48_of_its_own() -> None:
    key = 1234567
    for e in (0, 5, 10, 15, (1 << 40) + 3):
        bits = element_bits(key, e)
        assert bits >> 48 == (splitmix(key, e // 4) >> 16 * (e % 4)) % (1 << 16)
        assert bits % (1 << 48) == splitmix(splitmix(key, -1), e) >> 16


@pytest.mark.parametrize("device", DEVICES)
def test_elements_at_the_limit_are_settled_by_their_lower_bits(device: str) -> None:
    """A limit equal to an element's bits drops it; one more keeps it."""
    key, start = stream_key(0, 0, "w"), 3
    operations = open_operations(device)
    for e in (0, 1, 500, 1023, 1024, 2999):
        bits = element_bits(key, start + e)
        for limit in (bits, bits + 1):
            mask = np.asarray(operations.random_mask(key, start, 3000, limit))
            assert bool(mask[e]) == (bits < limit)
            assert mask.sum() == sum(element_bits(key, start + j) < limit for j in range(3000))


def test_keys_differ_by_each_part() -> None:
    keys = {stream_key(seed, slot, name) for seed in (0, 1, 11) for slot in (0, 1, 11) for name in ("a", "b", "1a", "")}
    assert len(keys) == 36
    assert stream_key(0, 0, "w") == stream_key(0, 0, "w") < 1 << 64


@pytest.mark.parametrize(("density", "limit"), [(1.0, 1 << 64), (2.0, 1 << 64), (0.5, 1 << 63), (0.0, 0), (-1.0, 0)])
def test_limits(density: float, limit: int) -> None:
    assert keep_limit(density) == limit


@pytest.mark.parametrize("device", DEVICES)
def test_densities_of_one_and_zero_keep_all_and_none(device: str) -> None:
    operations = open_operations(device)
    assert np.asarray(operations.random_mask(1, 0, 9999, keep_limit(1.0))).all()
    assert not np.asarray(operations.random_mask(1, 0, 9999, keep_limit(0.0))).any()


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_keep_rates_stay_within_four_sigma(density: float) -> None:
    n = 10_000_000
    mask = open_operations().random_mask(stream_key(0, 0, "w"), 0, n, keep_limit(density))
    assert abs(mask.mean() - density) < 4 * (density * (1 - density) / n) ** 0.5


def test_inputs_tensors_and_neighbours_are_independent() -> None:
    """Chi-square of the 16 joint outcomes of two inputs, another tensor and the next element, over 10 million draws."""
    operations, limit, n = open_operations(), keep_limit(0.5), 10_000_000
    first = operations.random_mask(stream_key(0, 0, "w"), 0, n, limit)
    joint = (
        first
        + 2 * operations.random_mask(stream_key(0, 1, "w"), 0, n, limit)
        + 4 * operations.random_mask(stream_key(0, 0, "v"), 0, n, limit)
        + 8 * operations.random_mask(stream_key(0, 0, "w"), 1, n, limit)
    )
    counts = np.bincount(joint, minlength=16)
    assert ((counts - n / 16) ** 2 / (n / 16)).sum() < 37.7  # the 0.999 quantile for 15 degrees of freedom
