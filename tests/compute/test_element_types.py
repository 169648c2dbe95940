"""Stored bytes to float32 and back, against torch, over every 16-bit pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymerge.compute import Operations, open_operations
from raymerge.dtypes import DType

TORCH = {DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32, DType.F64: torch.float64}
PATTERNS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


@pytest.fixture(params=["cpu", "torch:cpu"])
def operations(request: pytest.FixtureRequest) -> Operations:
    return open_operations(request.param)


def values_of(array: object) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.numpy()  # type: ignore[attr-defined]


def as_blocks(operations: Operations, values: np.ndarray) -> object:
    dtype = DType.F64 if values.dtype == np.float64 else DType.F32
    return operations.decode(bytearray(values.tobytes()), dtype, wide=dtype is DType.F64)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit, any NaN equal to any other of its sign."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[found.itemsize]
    both_nan = np.isnan(found) & np.isnan(expected)
    assert np.array_equal(found.view(bits)[~both_nan], expected.view(bits)[~both_nan])
    assert np.array_equal(np.isnan(found), np.isnan(expected))


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
@pytest.mark.parametrize("is_wide", [False, True])
def test_every_16_bit_pattern_decodes_as_in_torch(operations: Operations, dtype: DType, is_wide: bool) -> None:
    expected = (
        torch.from_numpy(PATTERNS.view(np.int16)).view(TORCH[dtype]).to(torch.float64 if is_wide else torch.float32)
    )
    same(values_of(operations.decode(PATTERNS.tobytes(), dtype, wide=is_wide)), expected.numpy())


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
@pytest.mark.parametrize("is_wide", [False, True])
def test_every_16_bit_pattern_survives_a_round_trip(operations: Operations, dtype: DType, is_wide: bool) -> None:
    out = bytearray(2 << 16)
    bad = operations.encode(operations.decode(PATTERNS.tobytes(), dtype, wide=is_wide), dtype, out)
    found = torch.frombuffer(out, dtype=TORCH[dtype]).float().numpy()
    expected = torch.frombuffer(bytearray(PATTERNS.tobytes()), dtype=TORCH[dtype]).float().numpy()
    same(found, expected)
    assert bad == np.count_nonzero(~np.isfinite(expected))


def edges() -> np.ndarray:
    """float32 values on, just below and just above every boundary between 16-bit values, and random bit patterns."""
    rng = np.random.default_rng(0)
    bf16 = PATTERNS.astype(np.uint32) << 16
    f16 = PATTERNS.view(np.float16).astype(np.float32)
    half = (f16[:-1].astype(np.float64) + f16[1:]).astype(np.float32) / 2
    bits = np.concatenate([
        *(bf16 + offset for offset in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)),
        rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint32),
    ]).astype(np.uint32)  # fmt: skip
    with np.errstate(all="ignore"):
        near = [half, np.nextafter(half, np.float32(np.inf)), np.nextafter(half, np.float32(-np.inf)), f16]
    return np.concatenate([bits.view(np.float32), *near]).astype(np.float32)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_float32_rounds_as_in_torch(operations: Operations, dtype: DType) -> None:
    values = edges()
    out = bytearray(values.size * dtype.bits // 8)
    bad = operations.encode(as_blocks(operations, values), dtype, out)
    expected = torch.from_numpy(values).to(TORCH[dtype]).float().numpy()
    same(torch.frombuffer(out, dtype=TORCH[dtype]).float().numpy(), expected)
    assert bad == np.count_nonzero(~np.isfinite(expected))


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_float64_rounds_once(operations: Operations, dtype: DType) -> None:
    """Just off the middle of two 16-bit values the nearer one is right, though as float32 it may be the middle."""
    positive = bytearray(PATTERNS[: 1 << 15].tobytes())
    all_values = torch.frombuffer(positive, dtype=TORCH[dtype]).double().numpy()
    finite = all_values[np.isfinite(all_values)]
    low, high = finite[:-1], finite[1:]
    middle = (low + high) / 2
    for sign in (1, -1):
        for values, expected in (
            (np.nextafter(middle, np.inf), high),
            (np.nextafter(middle, -np.inf), low),
            (middle, np.where((np.arange(len(low)) & 1) == 0, low, high)),
        ):
            out = bytearray(2 * len(values))
            assert operations.encode(as_blocks(operations, sign * values), dtype, out) == 0
            found = torch.frombuffer(out, dtype=TORCH[dtype]).double().numpy()
            assert np.array_equal(found, sign * expected)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_float64_out_of_range_is_infinite_and_counted(operations: Operations, dtype: DType) -> None:
    out = bytearray(4 * dtype.bits // 8)
    values = np.array([1e300, -1e300, np.nan, 1.0])
    assert operations.encode(as_blocks(operations, values), dtype, out) == 3
    found = torch.frombuffer(out, dtype=TORCH[dtype]).double().numpy()
    assert np.array_equal(found, [np.inf, -np.inf, np.nan, 1.0], equal_nan=True)


def test_float64_keeps_every_bit(operations: Operations) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 62, 1000).view(np.float64)
    out = bytearray(8000)
    operations.encode(operations.decode(values.tobytes(), DType.F64, wide=True), DType.F64, out)
    assert bytes(out) == values.tobytes()


def test_decode_fills_the_array_it_is_given(operations: Operations) -> None:
    first = operations.decode(b"\x80\x3f\x00\x40", DType.BF16)
    again = operations.decode(b"\x00\x00\x80\x3f", DType.BF16, first)
    assert again is first
    assert values_of(first).tolist() == [0.0, 1.0]


def test_odd_offsets_of_a_buffer_decode(operations: Operations) -> None:
    raw = memoryview(b"\x00\x80\x3f\x00\x40")[1:]
    assert values_of(operations.decode(raw, DType.BF16)).tolist() == [1.0, 2.0]
