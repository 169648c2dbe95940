"""Speed of the kernels on one core, beside a copy of memory.

    python benchmarks/kernels.py [--block 131072] [--seconds 0.3] [--compile]

Prints billions of elements per second: of the output for kernels that combine K inputs, of the input for the others.
Data are blocks that stay in the second-level cache, as in a merge. `--compile` also times the first merge by TIES in a
fresh process with an empty kernel cache, then with a filled one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from raymerge.compute import open_operations
from raymerge.compute.operations import Operations
from raymerge.compute.random_bits import keep_limit
from raymerge.compute.selection import TopKeeper, find_thresholds
from raymerge.dtypes import DType

FIRST_TIES = """
import time; start = time.perf_counter()
import numpy as np
from raymerge.compute import open_operations
from raymerge.dtypes import DType
from raymerge.methods import Block, Inputs, method
operations = open_operations()
raw = np.random.default_rng(0).normal(size=8192).astype(np.float32).view(np.uint16)[1::2].tobytes()
def scan(rows):
    x = [operations.decode(raw, DType.BF16) for _ in range(4)]
    x = [each * (i + 1) for i, each in enumerate(x)]
    yield Block(start=0, count=8192, x=tuple(x[1:]), base=x[0], operations=operations)
declared = method("ties")
inputs = Inputs(
    shape=(8192,), shared={p.name: p.default for p in declared.parameters if not p.per_input},
    each=({"weight": 1.0, "density": 0.5},) * 3, keys=(0, 1, 2), has_base=True, operations=operations, open_scan=scan)
combine = declared.merge(inputs)
for block in inputs.scan():
    operations.encode(combine(block), DType.BF16, bytearray(2 * 8192))
print(f"{time.thread_time() - start:.2f}")
"""


def rate(call: Callable[[], object], elements: int, seconds: float) -> float:
    """Billions of elements per second of this thread's CPU time, the best of many runs."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.thread_time_ns()
        call()
        best = min(best, time.thread_time_ns() - start)
    return elements / best


def blocks(count: int, n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Models and their base: float32 with bfloat16 values, as in most merges."""
    rng = np.random.default_rng(0)

    def rounded(values: np.ndarray) -> np.ndarray:
        return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    base = rounded(rng.normal(0, 0.02, n))
    return [rounded(base + rng.normal(0, 0.002, n)) for _ in range(count)], base


def element_type_kernels(operations: Operations, n: int) -> dict[str, Callable[[], object]]:
    (x,), _ = blocks(1, n)
    copied, wide = np.empty_like(x), np.empty(n)
    calls: dict[str, Callable[[], object]] = {"memcpy of float32": lambda: np.copyto(copied, x)}
    for dtype in (DType.BF16, DType.F16, DType.F32):
        raw = bytearray(n * dtype.bits // 8)
        calls[f"decode {dtype.recipe_name}"] = lambda raw=raw, dtype=dtype: operations.decode(raw, dtype, copied)
        calls[f"encode {dtype.recipe_name}"] = lambda raw=raw, dtype=dtype: operations.encode(x, dtype, raw)
    calls["encode bfloat16 from float64"] = lambda: operations.encode(wide, DType.BF16, bytearray(2 * n))
    return calls


def input_kernels(operations: Operations, n: int) -> dict[str, Callable[[], object]]:
    (x,), base = blocks(1, n)
    (threshold,) = find_thresholds(operations, lambda: iter([[(x, base)]]), [(0, n // 2)])
    limits = operations.rank_limits(0.5, 0.15, 4096)
    row = n // 4096 * 4096
    return {
        "selection, high digit": lambda: operations.histogram(x, base, 0, 0),
        "selection, low digit": lambda: operations.histogram(x, base, 1, 0x3AFF),
        "selection, whole": lambda: find_thresholds(operations, lambda: iter([[(x, base)]]), [(0, n // 2)]),
        "mask of the largest": lambda: TopKeeper(threshold).mask(operations, x, base),
        "random mask": lambda: operations.random_mask(1, 0, n, keep_limit(0.5)),
        "mask by rank in rows of 4096": lambda: operations.rank_mask(x[:row], base[:row], limits, key=1, start=0),
        "L1 norm of kept": lambda: operations.chunk_sums(x, base, operations.no_mask(n)),
        "dot product": lambda: operations.chunk_gram([x], None),
    }


def combining_kernels(operations: Operations, n: int) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for count in (2, 3, 4, 6, 8, 12):
        x, base = blocks(count, n)
        ones, masks = [1.0] * count, [operations.random_mask(k, 0, n, keep_limit(0.5)) for k in range(count)]
        thresholds = find_thresholds(
            operations, lambda x=x, base=base: iter([[(each, base) for each in x]]), [(i, n // 2) for i in range(count)]
        )

        def ties(x=x, base=base, ones=ones, thresholds=thresholds) -> object:
            masks = [
                TopKeeper(threshold).mask(operations, each, base) for threshold, each in zip(thresholds, x, strict=True)
            ]
            return operations.elect(x, base, masks, ones, ones)

        calls[f"TIES combine, K = {count}"] = ties
        calls[f"elect, K = {count}"] = lambda x=x, base=base, masks=masks, ones=ones: operations.elect(
            x, base, masks, ones, ones
        )
        calls[f"masked sum, K = {count}"] = lambda x=x, base=base, masks=masks, ones=ones: operations.masked_sum(
            x, base, masks, ones
        )
        calls[f"weighted sum, K = {count}"] = lambda x=x, ones=ones: operations.weighted_sum(ones, x)
        calls[f"Gram matrix, K = {count}"] = lambda x=x, base=base: operations.chunk_gram(x, base)
    return calls


def first_ties_seconds() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        first, second = (
            float(
                subprocess.run(
                    [sys.executable, "-c", FIRST_TIES], env=environment, check=True, capture_output=True
                ).stdout
            )
            for _ in range(2)
        )
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=131072, help="elements in a block")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each kernel")
    parser.add_argument("--compile", action="store_true", help="also time the first merge of a process")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    options = parser.parse_args()
    operations = open_operations()
    for kernels in (element_type_kernels, input_kernels, combining_kernels):
        for name, call in kernels(operations, options.block).items():
            if options.only in name:
                print(f"{name:32} {rate(call, options.block, options.seconds):6.2f} Gelem/s", flush=True)
    if options.compile:
        print(
            "first merge by TIES in a process: {:.2f} s, with kernels compiled before {:.2f} s".format(
                *first_ties_seconds()
            )
        )


if __name__ == "__main__":
    main()
