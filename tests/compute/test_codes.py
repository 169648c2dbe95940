"""Operations on bfloat16 codes as they lie give what they give on the decoded floats, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from method_harness import written

from raymerge.compute import open_operations
from raymerge.compute.cpu_operations import CpuOperations
from raymerge.compute.operations import Limit, Operations
from raymerge.dtypes import DType

N = 5 * 1024 + 77  # a last tile that is not full
ROW = N // 7
SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 0x0080], np.uint16)


def codes(seed: int, *, special: bool = False) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.02, N).astype(np.float32)
    found = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    if special:
        found[:: N // 100] = SPECIAL[np.arange(len(found[:: N // 100])) % len(SPECIAL)]
    return found


def counted(operations: Operations, x: Any, base: Any, low: int, shift: int, bins: int) -> list[Any]:
    table = operations.empty_counts(bins, N)
    fine = operations.count_magnitudes(x, base, table, low=low, shift=shift)
    return [operations.read_counts(table), fine]


def drawn(operations: Operations, count: int) -> list[Any]:
    return [operations.draw(k, 11, N, 1 << 63) for k in range(count)]


LIMIT = Limit(threshold=0.01, inclusive=True)
BAND = Limit(threshold=0.005, inclusive=False, below=LIMIT)
OPERATIONS: dict[str, Callable[[Operations, list[Any], Any], Any]] = {
    "deltas": lambda o, x, b: o.deltas(x, b),
    "weighted sum": lambda o, x, b: o.weighted_sum([0.5, -0.25, 1.5, 1.0], [*x, b]),
    "masked sum": lambda o, x, b: o.masked_sum(x, b, [None, LIMIT, *drawn(o, 1)], [0.5, 0.25, 2.0], 1.5),
    "masked sum without a base": lambda o, x, b: o.masked_sum(x, None, [LIMIT, None, None], [0.5, 0.25, 2.0]),
    "election of two": lambda o, x, b: o.elect(x[:2], b, [None, LIMIT], [1.0, 1.0], [1.0, 0.5]),
    "election of three": lambda o, x, b: o.elect(x, b, drawn(o, 3), [1.0, 0.5, 1.0], [1.0, 0.5, 1.0]),
    "election of six": lambda o, x, b: o.elect([*x, *x], b, [None, LIMIT] * 3, [1.0] * 6, [0.5, 1.0, -1.0] * 2),
    "sum of the elected of two": lambda o, x, b: o.elect(x[:2], b, [LIMIT, None], [1.0] * 2, [1.0] * 2, divide=False),
    "sum of the elected of three": lambda o, x, b: o.elect(x, b, drawn(o, 3), [0.5] * 3, [0.5] * 3, divide=False),
    "election by count": lambda o, x, b: o.elect(x, b, [None] * 3, [1.0] * 3, [1.0] * 3, count_votes=True),
    "election with gains": lambda o, x, b: o.elect(x, b, [None] * 3, [1.0] * 3, [1.0] * 3, gains=[0.1, 0.2, 0.7]),
    "bits": lambda o, x, b: o.magnitude_bits(x[0]),
    "counts": lambda o, x, b: counted(o, x[0], b, 0, 16, 1 << 15),
    "counts of a window": lambda o, x, b: counted(o, x[0], b, 0x3C000000, 2, 1 << 18),
    "counts without a base": lambda o, x, b: counted(o, x[0], None, 0x3C000000, 9, 1 << 10),
    "top mask": lambda o, x, b: o.top_mask(x[0], b, 0.01, 2000),
    "count equal": lambda o, x, b: o.count_equal(x[0], b, 0.0078125),
    "index after equals": lambda o, x, b: o.index_after_equals(x[0], x[0], 0.0, 5),
    "Gram matrix of two": lambda o, x, b: o.chunk_gram(x[:2], None, 1000),
    "Gram matrix of two changes": lambda o, x, b: o.chunk_gram(x[:2], b, 1000),
    "Gram matrix": lambda o, x, b: o.chunk_gram(x, b, 1000),
    "sums": lambda o, x, b: o.chunk_sums(x[0], b, LIMIT, chunk=1000),
    "sums of squares": lambda o, x, b: o.chunk_sums(x[0], None, *drawn(o, 1), squared=True, chunk=1000),
    "norms": lambda o, x, b: o.chunk_norms(x, b, drawn(o, len(x)), 1000),
    "masked sum of bands": lambda o, x, b: o.masked_sum(x, b, [BAND, LIMIT, BAND], [0.5, 0.25, 2.0], 1.5),
    "sums of a band without a base": lambda o, x, b: o.chunk_sums(x[0], None, BAND, chunk=1000),
    "mask of a band": lambda o, x, b: o.write_mask(BAND, x[0], b),
    "norms with a limit": lambda o, x, b: o.chunk_norms(x[:1], b, (LIMIT,), 1000),
    "rank mask": lambda o, x, b: written(
        o.rank_mask(x[0][: ROW * 7], b[: ROW * 7], o.rank_limits(0.5, 0.2, ROW), key=3, start=0), ROW * 7
    ),
    "products": lambda o, x, b: o.delta_products(x[0], x[1], b),
    "weighted by element": lambda o, x, b: o.weighted_sum_by([o.cycle([0.5, 1.0], 0, N)] * 2, x[:2]),
    "divergences": lambda o, x, b: o.row_divergences(x[0][: ROW * 7], b[: ROW * 7], ROW),
    "scaled by row": lambda o, x, b: o.row_scaled_magnitudes(x[0][: ROW * 7], b[: ROW * 7], [0.5] * 7, ROW),
    "spread": lambda o, x, b: o.spread(x),
    "steps": lambda o, x, b: o.step_towards(x[0], b, 0.001, 1e-8),
    "active counts": lambda o, x, b: o.active_counts(x, b, 0.01),
    "active mean": lambda o, x, b: o.active_mean(x, b, 0.01, [1.0, 2.0, 3.0]),
    "encoded": lambda o, x, b: encoded(o, x[0]),
    "not finite": lambda o, x, b: o.count_nonfinite(x[0]),
}


def encoded(operations: Operations, array: Any) -> list[Any]:
    out = bytearray(2 * N)
    return [operations.encode(array, DType.BF16, out), np.frombuffer(out, np.uint16)]


ROUNDING: dict[str, Callable[..., Any]] = {
    "weighted sum": lambda o, x, b, **out: o.weighted_sum([0.5, -0.25, 1.5], x, **out),
    "masked sum": lambda o, x, b, **out: o.masked_sum(x, b, [None, LIMIT, *drawn(o, 1)], [0.5, 0.25, 2.0], **out),
    "election of two": lambda o, x, b, **out: o.elect(x[:2], b, [None, LIMIT], [1.0, 1.0], [1.0, 0.5], **out),
    "election of three": lambda o, x, b, **out: o.elect(x, b, [LIMIT] * 3, [1.0, 0.5, 1.0], [1.0, 0.5, 1.0], **out),
    "election of six": lambda o, x, b, **out: o.elect([*x, *x], b, [None] * 6, [1.0] * 6, [0.5] * 6, **out),
}


@pytest.mark.parametrize("special", [False, True], ids=["finite", "special values"])
@pytest.mark.parametrize("name", ROUNDING)
def test_results_rounded_on_the_way_are_those_that_are_encoded(name: str, special: bool) -> None:
    operations = open_operations()
    held = [codes(seed, special=special) for seed in range(4)]
    call, floats = ROUNDING[name], [operations.decode(each.tobytes(), DType.BF16) for each in held]
    for base, *x in (held, floats):
        expected, stored = bytearray(2 * N), bytearray(2 * N)
        bad = operations.encode(call(operations, x, base), DType.BF16, expected)
        out = operations.view(stored, DType.BF16)
        assert call(operations, x, base, out=out) is out
        assert stored == expected
        assert operations.count_nonfinite(out) == bad
        assert (bad > 0) == special


def as_bytes(found: Any) -> list[bytes]:
    if isinstance(found, (list, tuple)) and any(isinstance(each, np.ndarray) for each in found):
        return [each for part in found for each in as_bytes(part)]
    return [np.ascontiguousarray(found).tobytes(), str(np.asarray(found).dtype).encode()]


@pytest.mark.parametrize("special", [False, True], ids=["finite", "special values"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_codes_are_as_good_as_floats(name: str, special: bool) -> None:
    operations = open_operations()
    held = [codes(seed, special=special) for seed in range(4)]
    floats = [operations.decode(each.tobytes(), DType.BF16) for each in held]
    call = OPERATIONS[name]
    with np.errstate(all="ignore"):
        expected = call(operations, floats[1:], floats[0])
        assert as_bytes(call(operations, held[1:], held[0])) == as_bytes(expected)
        mixed = [held[1], floats[2], held[3]]
        if name != "index after equals":
            assert as_bytes(call(operations, mixed, floats[0])) == as_bytes(expected)


def test_every_operation_on_blocks_is_held_to_it() -> None:
    """A new operation joins the table, or is one that takes no block of an input."""
    without = {"decode", "view", "no_mask", "random_mask", "draw", "empty_counts", "read_counts", "mask_difference"}
    without |= {"rank_limits", "repeat", "cycle", "recycle_counts", "room_to_keep"}
    named = {each for call in OPERATIONS.values() for each in (*call.__code__.co_names, "count_magnitudes", "encode")}
    public = {name for name in vars(Operations) if not name.startswith("_")}
    assert public - named - without == set()


def test_only_aligned_bfloat16_is_taken_as_it_lies() -> None:
    operations = CpuOperations()
    raw = bytearray(2 * N + 1)
    assert operations.view(memoryview(raw)[: 2 * N], DType.BF16) is not None
    assert operations.view(memoryview(raw)[1:], DType.BF16) is None
    assert operations.view(memoryview(raw)[: 2 * N], DType.F16) is None
