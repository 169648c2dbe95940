"""Runs one merge method on arrays, block by block, as a shard does; and measures how well results are rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from raymerge.compute import Operations, open_operations, stream_key
from raymerge.compute.operations import PackedMask
from raymerge.dtypes import DType
from raymerge.methods import Block, Inputs, method

Each = dict[str, Sequence[Any]]  # per-input parameters: a value for each input


def written(mask: Any, count: int) -> np.ndarray:
    """A mask of the rank kernels as an array of 0 and 1."""
    if isinstance(mask, PackedMask):
        return np.unpackbits(mask.bits, count=count, bitorder="little")
    return to_numpy(mask)


def to_numpy(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


class Scan:
    """Blocks in reused memory that is spoilt once the next block is drawn, so that nothing can lean on old ones."""

    def __init__(self, operations: Operations, x: Sequence[np.ndarray], base: np.ndarray | None, block: int) -> None:
        self.operations, self.x, self.base, self.block = operations, x, base, block
        self.passes = 0
        self.row_length = 1

    def __call__(self, rows: bool) -> Iterator[Block]:
        self.passes += 1
        n = self.x[0].size
        step = self.block if not rows else max(1, self.block // max(1, self.row_length)) * max(1, self.row_length)
        for start in range(0, n, step):
            count = min(step, n - start)
            x = tuple(self._load(each, start, count) for each in self.x)
            base = None if self.base is None else self._load(self.base, start, count)
            yield Block(start=start, count=count, x=x, base=base, operations=self.operations)
            for array in (*x, base):
                if array is not None:
                    array[:] = float("nan")

    def _load(self, array: np.ndarray, start: int, count: int) -> Any:
        dtype = DType.F64 if array.dtype == np.float64 else DType.F32
        raw = bytearray(array.reshape(-1)[start : start + count].tobytes())
        return self.operations.decode(raw, dtype, wide=array.dtype == np.float64)


def make_inputs(
    name: str,
    x: Sequence[np.ndarray],
    base: np.ndarray | None = None,
    *,
    each: Each | None = None,
    block: int = 131072,
    device: str = "cpu",
    seed: int = 0,
    tensor: str = "w",
    **shared: Any,
) -> tuple[Inputs, Scan]:
    declared = method(name)
    per_input = {p.name: [p.default] * len(x) for p in declared.parameters if p.per_input} | (each or {})
    operations = open_operations(device)
    scan = Scan(operations, x, base, block)
    inputs = Inputs(
        shape=x[0].shape,
        shared={p.name: p.default for p in declared.parameters if not p.per_input} | shared,
        each=tuple({key: values[i] for key, values in per_input.items()} for i in range(len(x))),
        keys=tuple(stream_key(seed, slot, tensor) for slot in range(len(x))),
        has_base=base is not None,
        operations=operations,
        open_scan=scan,
    )
    scan.row_length = inputs.row_length
    return inputs, scan


def run_method(name: str, x: Sequence[np.ndarray], base: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """The merged tensor, as float32 (float64 if the inputs are); see make_inputs for the options."""
    inputs, scan = make_inputs(name, x, base, **options)
    combine = method(name).merge(inputs)
    wide = x[0].dtype == np.float64
    assert scan.passes <= method(name).passes * (2 if wide else 1), "more passes than the method declares"
    out = [to_numpy(combine(block)).copy() for block in inputs.scan(rows=method(name).rows)]
    return np.concatenate(out or [np.empty(0, x[0].dtype)]).reshape(x[0].shape)


def round_bf16(values: np.ndarray) -> np.ndarray:
    """float64 to the nearest bfloat16 (ties to even), as float64; for values in bfloat16's normal range."""
    unit = bf16_ulp(values)
    return np.rint(values / unit) * unit


def bf16_ulp(values: np.ndarray) -> np.ndarray:
    exponent = np.frexp(np.abs(np.asarray(values, np.float64)))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, -126) - 7)


def encode_bf16(array: np.ndarray) -> np.ndarray:
    """What `encode` stores, as float64."""
    raw = bytearray(2 * array.size)
    open_operations().encode(np.ascontiguousarray(array).reshape(-1), DType.BF16, raw)
    bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64).reshape(array.shape)


def assert_well_rounded(result: np.ndarray, exact: np.ndarray) -> None:
    """bfloat16 output: 99.9% within (0.5 + 2^-10) ulp of the exact value, RMS error at most 1.01 of the best."""
    stored = encode_bf16(result)
    error = np.abs(stored - exact)
    wrong = np.mean(error > (0.5 + 2**-10) * bf16_ulp(exact))
    assert wrong <= 0.001, f"{wrong:.3%} of the elements are not correctly rounded"
    best = np.sqrt(np.mean((round_bf16(exact) - exact) ** 2))
    rms = np.sqrt(np.mean(error**2))
    assert rms <= 1.01 * best, f"RMS error {rms / best:.4f} of the best"


def bf16_models(
    count: int, n: int | tuple[int, ...] = 20_000, *, spread: float = 0.01, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """(models, base) with bfloat16 values: their differences lie on a grid, with many equal magnitudes and zeros."""
    rng = np.random.default_rng(seed)
    base = round_bf16(rng.normal(0, 0.05, n))
    models = [round_bf16(base * (1 + rng.normal(0, spread, n)) + rng.normal(0, 1e-4, n)) for _ in range(count)]
    return [model.astype(np.float32) for model in models], base.astype(np.float32)


def float_models(
    count: int, n: int | tuple[int, ...] = 20_000, *, spread: float = 0.1, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """(models, base) with float32 values."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.05, n)
    models = [base + rng.normal(0, 0.05 * spread, n) for _ in range(count)]
    return [model.astype(np.float32) for model in models], base.astype(np.float32)
