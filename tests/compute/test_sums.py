from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from method_harness import to_numpy, written

from raymerge.compute import open_operations
from raymerge.compute.operations import Limit
from raymerge.compute.sums import CHUNK_ELEMENTS, PairwiseSum
from raymerge.dtypes import DType

_F32 = DType.F32


@given(
    st.lists(st.floats(-1e6, 1e6), max_size=70),
    st.lists(st.integers(0, 70), max_size=5),
    st.sampled_from([1, 40, 4096]),
)
def test_the_total_does_not_depend_on_how_rows_arrive(rows: list[float], cuts: list[int], together: int) -> None:
    whole, parts = PairwiseSum(), PairwiseSum(together_bytes=together)
    values = np.array(rows, np.float64)
    whole.add(values)
    for part in np.split(values, sorted(cut for cut in cuts if cut <= len(rows))):
        parts.add(part)
    assert whole.total().tobytes() == parts.total().tobytes()


@pytest.mark.parametrize("together", [8, 1 << 18])
def test_rows_are_added_pairwise(together: int) -> None:
    total = PairwiseSum(together_bytes=together)
    for rows in ([1.0, 2.0**60, -(2.0**60)], [3.0, 5.0]):
        total.add(np.array(rows))
    assert float(total.total()) == ((1 + 2.0**60) + (-(2.0**60) + 3.0)) + 5.0


def test_nothing_sums_to_zero() -> None:
    assert float(PairwiseSum().total()) == 0


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("n", [1, 63, 64, 4096, 4097, 10_000])
@pytest.mark.parametrize("chunk", [CHUNK_ELEMENTS, 1, 100])
def test_chunk_sums_are_right(device: str, n: int, chunk: int) -> None:
    rng = np.random.default_rng(0)
    n = -(-n // chunk) * chunk if chunk != CHUNK_ELEMENTS else n
    x, base = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    operations = open_operations(device)
    blocks = [operations.decode(bytearray(each.tobytes()), _F32) for each in (x, base)]
    mask = operations.random_mask(1, 0, n, 1 << 63)
    kept = np.asarray(mask).astype(bool)
    d = x.astype(np.float64) - base
    for squared, terms in ((False, np.abs(d)), (True, d * d)):
        sums = operations.chunk_sums(*blocks, mask, squared=squared, chunk=chunk)
        exact = [sum(map(Fraction, part), Fraction(0)) for part in _chunks(np.where(kept, terms, 0), chunk)]
        np.testing.assert_allclose(sums, [float(total) for total in exact], rtol=1e-14)
    gram = operations.chunk_gram(blocks, None, chunk)
    np.testing.assert_allclose(
        gram[:, 0, 1], [(part).sum() for part in _chunks(x.astype(float) * base, chunk)], atol=1e-10
    )
    assert np.array_equal(gram[:, 0, 1], gram[:, 1, 0])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("has_base", [False, True])
@pytest.mark.parametrize(("n", "chunk"), [(1, 64), (63, 64), (5000, 64), (5000, 1000), (5000, CHUNK_ELEMENTS)])
def test_gram_matrices_are_added_in_one_order(count: int, has_base: bool, n: int, chunk: int) -> None:
    """Lane by lane in element order, then the lanes pairwise: the same bits on every device."""
    values = np.random.default_rng(1).normal(size=(count + 1, n)).astype(np.float32)
    found = []
    for device in ("cpu", "torch:cpu"):
        operations = open_operations(device)
        *x, base = (operations.decode(bytearray(each.tobytes()), _F32) for each in values)
        found.append(np.asarray(operations.chunk_gram(x, base if has_base else None, chunk)))
    d = values[:-1].astype(np.float64) - (values[-1] if has_base else 0)
    expected = np.empty_like(found[0])
    for i, part in enumerate(np.split(d, range(chunk, n, chunk), axis=1)):
        padded = np.pad(part, ((0, 0), (0, -part.shape[1] % 64))).reshape(count, -1, 64)
        for k, other in np.ndindex(count, count):
            lanes = np.zeros(64)
            for a, b in zip(padded[k], padded[other], strict=True):
                lanes += a * b
            while len(lanes) > 1:
                lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
            expected[i, k, other] = lanes[0]
    assert found[0].tobytes() == expected.tobytes()
    assert found[1].tobytes() == expected.tobytes()


def _chunks(values: np.ndarray, chunk: int) -> list[np.ndarray]:
    return np.split(values, range(chunk, values.size, chunk))


def norms_by_definition(magnitudes: np.ndarray, chunk: int) -> np.ndarray:
    """Four steps of 64 lanes in the magnitudes' type, those in float64 in order, and the lanes pairwise."""
    sums = []
    for part in _chunks(magnitudes, chunk):
        steps = np.pad(part, (0, -part.size % 256)).reshape(-1, 4, 64)
        fours = ((steps[:, 0] + steps[:, 1]) + steps[:, 2]) + steps[:, 3]
        lanes = np.zeros(64)
        for four in fours:
            lanes = lanes + four.astype(np.float64)
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        sums.append(float(lanes[0]))
    return np.array(sums)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("chunk", [CHUNK_ELEMENTS, 100, 1300])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_norms_are_added_up_as_defined_whatever_the_masks(device: str, chunk: int, kind: Any) -> None:
    rng = np.random.default_rng(0)
    n = 13_000
    operations = open_operations(device)
    dtype, wide = (DType.F64, True) if kind is np.float64 else (_F32, False)
    stored = [rng.normal(size=n).astype(kind) for _ in range(6)]
    x = [operations.decode(bytearray(each.tobytes()), dtype, wide=wide) for each in stored]
    within = Limit(threshold=0.25, inclusive=True)
    masks = [
        None,
        operations.random_mask(1, 0, n, 1 << 63),
        operations.draw(2, 0, n, 1 << 62),
        Limit(threshold=0.75, inclusive=False),
        Limit(threshold=0.125, inclusive=True, below=within),
    ]
    for base in (None, stored.pop()):
        found = operations.chunk_norms(x[:5], None if base is None else x[5], masks, chunk)
        assert found.shape == (-(-n // chunk), 5, 2)
        for i, mask in enumerate(masks):
            magnitudes = np.abs(stored[i] if base is None else stored[i] - base)
            kept = [
                np.ones(n, bool),
                to_numpy(operations.random_mask(1, 0, n, 1 << 63)) != 0,
                to_numpy(operations.random_mask(2, 0, n, 1 << 62)) != 0,
                magnitudes > 0.75,
                (magnitudes >= 0.125) & (magnitudes < 0.25),
            ][i]
            assert np.array_equal(found[:, i, 0], norms_by_definition(magnitudes, chunk))
            assert np.array_equal(found[:, i, 1], norms_by_definition(np.where(kept, magnitudes, kind(0)), chunk))
            given = None if base is None else x[5]
            assert np.allclose(found[:, i, 1], operations.chunk_sums(x[i], given, mask, chunk=chunk), rtol=2e-7)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
def test_norms_of_what_does_not_fit_float32_are_those_of_float64(device: str) -> None:
    """In the chunks where it does not: a difference, or a sum of four; what is not finite stays so."""
    operations = open_operations(device)
    x = np.full(5 * 512, 1.0, np.float32)
    base = np.zeros_like(x)
    x[512], base[512] = 3e38, -3e38
    x[1024 : 1024 + 256] = 2e38
    x[1536] = np.nan
    arrays = [operations.decode(bytearray(each.tobytes()), _F32) for each in (x, base)]
    mask = operations.draw(3, 0, x.size, 1 << 63)
    found = operations.chunk_norms(arrays[:1], arrays[1], [mask], 512)
    exact = [operations.chunk_sums(*arrays, which, chunk=512) for which in (None, mask)]
    assert np.array_equal(found[:, 0], np.array(exact).T, equal_nan=True)
    assert np.isfinite(found[[0, 1, 2, 4]]).all()
    assert found[1, 0, 0] > 5.9e38
    assert np.isnan(found[3, 0, 0])


@pytest.mark.parametrize("chunk", [CHUNK_ELEMENTS, 1003])
def test_a_packed_mask_keeps_what_its_bits_say(chunk: int) -> None:
    """From whatever element kernels begin, up to the last bits of a byte that the block does not fill."""
    rng = np.random.default_rng(0)
    row, n = 13, 13 * 1003
    operations = open_operations()
    x, base = list(rng.normal(size=(3, n)).astype(np.float32)), rng.normal(size=n).astype(np.float32)
    limits = operations.rank_limits(0.5, 0.3, row)
    packed = [operations.rank_mask(each, base, limits, key=key, start=0) for key, each in enumerate(x)]
    masks = [written(mask, n) for mask in packed]
    ones = [1.0] * 3
    for few in (1, 3):
        for call in (
            lambda which, few=few: operations.chunk_norms(x[:few], base, which[:few], chunk),
            lambda which, few=few: operations.chunk_sums(x[few - 1], base, which[few - 1], chunk=chunk),
            lambda which, few=few: operations.masked_sum(x[:few], base, which[:few], ones[:few]),
            lambda which, few=few: operations.elect(x[:few], base, which[:few], ones[:few], ones[:few]),
        ):
            assert call(packed).tobytes() == call(masks).tobytes()
            assert call(packed).tobytes() != call([None] * 3).tobytes()


@pytest.mark.parametrize(("n", "chunk"), [(13 * 1003, CHUNK_ELEMENTS), (5001, 1000), (7, 8), (1024, 1024)])
def test_a_drawn_mask_is_kept_as_it_was_counted(n: int, chunk: int) -> None:
    """Limits that high bits alone decide, and one that some elements' lower bits do."""
    operations = open_operations()
    x = list(np.random.default_rng(0).normal(size=(3, n)).astype(np.float32))
    kept = [operations.room_to_keep(n) for _ in x]
    limits = [1 << 63, 1 << 62, (1 << 63) + 12345]
    drawn = [
        operations.draw(key, 40, n, limit, room) for key, (limit, room) in enumerate(zip(limits, kept, strict=True))
    ]
    norms = operations.chunk_norms(x, None, drawn, chunk)
    for key, (limit, room) in enumerate(zip(limits, kept, strict=True)):
        assert np.array_equal(written(room, n), operations.random_mask(key, 40, n, limit))
        assert not written(room, room.nbytes * 8)[n:].any()
    assert operations.chunk_norms(x, None, kept, chunk).tobytes() == norms.tobytes()
