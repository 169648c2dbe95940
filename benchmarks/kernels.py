"""Speed of the kernels on one core, beside a copy of memory.

    python benchmarks/kernels.py [--block 131072] [--seconds 0.3] [--only NAME] [--compile]

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
from collections.abc import Callable, Iterator

import numpy as np

from raymerge.compute import open_operations
from raymerge.compute.operations import Operations
from raymerge.compute.random_bits import keep_limit
from raymerge.compute.selection import Threshold, TopKeeper, find_thresholds
from raymerge.dtypes import DType
from raymerge.merging.scan import SAMPLE_STEP, SAMPLE_TAKE

FIRST_TIES = """
import time; start = time.process_time()
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
print(f"{time.process_time() - start:.2f}")
"""


def rate(call: Callable[[], object], elements: int, seconds: float) -> float:
    """Billions of elements per second of this thread's CPU time, the best of many runs."""
    call()
    start = time.perf_counter()
    call()
    repeats = 1 + int(0.01 / max(1e-6, time.perf_counter() - start))  # thread time may advance in coarse steps
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start_ns = time.thread_time_ns()
        for _ in range(repeats):
            call()
        best = min(best, (time.thread_time_ns() - start_ns) / repeats)
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
    (threshold,) = find_thresholds(operations, lambda _sample: iter([[(x, base)]]), [(0, n // 2)], n)
    limits = operations.rank_limits(0.5, 0.15, 4096)
    row = n // 4096 * 4096
    everything = operations.empty_counts(1 << 15, n)
    low = (int(np.float32(threshold.value).view(np.uint32)) >> 16) - 3 << 16
    window = operations.empty_counts(6 << 16, n)
    return {
        "count all": lambda: operations.count_magnitudes(x, base, everything, low=0, shift=16),
        "count a window": lambda: operations.count_magnitudes(x, base, window, low=low, shift=0),
        "mask of the largest": lambda: operations.top_mask(x, base, threshold.value, n),
        "count equals": lambda: operations.count_equal(x, base, threshold.value),
        "random mask": lambda: operations.random_mask(1, 0, n, keep_limit(0.5)),
        "mask by rank in rows of 4096": lambda: operations.rank_mask(x[:row], base[:row], limits, key=1, start=0),
        "L1 norm of kept": lambda: operations.chunk_sums(x, base, operations.no_mask(n)),
        "dot product": lambda: operations.chunk_gram([x], None),
    }


def selection(operations: Operations, n: int) -> dict[str, Callable[[], object]]:
    """A threshold of a whole tensor of bfloat16 codes."""
    total = 64 * n
    (x,), base = blocks(1, total)
    raw = [each.view(np.uint16)[1::2].copy() for each in (x, base)]

    def open_blocks(sample: bool) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        step = n * (SAMPLE_STEP // SAMPLE_TAKE) if sample else n
        for start in range(0, total, step):
            x, base = (stored[start : start + step] for stored in raw)
            if sample:
                whole = len(x) // SAMPLE_STEP * SAMPLE_STEP
                x, base = (each[:whole].reshape(-1, SAMPLE_STEP)[:, :SAMPLE_TAKE].ravel() for each in (x, base))
            yield [(x, base)]

    return {
        f"selection in {total / 1e6:.0f}M elements": lambda: find_thresholds(
            operations, open_blocks, [(0, total // 2)], total
        )
    }


def combining_kernels(operations: Operations, n: int) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for count in (2, 3, 4, 6, 8, 12):
        x, base = blocks(count, n)
        ones, masks = [1.0] * count, [operations.random_mask(k, 0, n, keep_limit(0.5)) for k in range(count)]
        thresholds = find_thresholds(
            operations,
            lambda _sample, x=x, base=base: iter([[(each, base) for each in x]]),
            [(i, n // 2) for i in range(count)],
            n,
        )

        def ties(x=x, base=base, ones=ones, thresholds=thresholds, pending=False) -> object:
            """With or without magnitudes equal to the threshold to be counted."""
            equal = {"keep_equal": 1 << 40, "equal": (1 << 40) + pending}
            keepers = [TopKeeper(Threshold(value=threshold.value, **equal)) for threshold in thresholds]
            masks = [keeper.keep(operations, each, base) for keeper, each in zip(keepers, x, strict=True)]
            return operations.elect(x, base, masks, ones, ones)

        calls[f"TIES combine, K = {count}"] = ties
        calls[f"TIES combine, ties, K = {count}"] = lambda ties=ties: ties(pending=True)
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
    for kernels in (element_type_kernels, input_kernels, selection, combining_kernels):
        for name, call in kernels(operations, options.block).items():
            elements = options.block * (64 if kernels is selection else 1)
            if options.only in name:
                print(f"{name:32} {rate(call, elements, options.seconds):6.2f} Gelem/s", flush=True)
    if options.compile:
        print(
            "first merge by TIES in a process: {:.2f} s of CPU, with kernels compiled before {:.2f} s".format(
                *first_ties_seconds()
            )
        )


if __name__ == "__main__":
    main()
