"""What a scan hands to a method, from inputs that lie in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from hub_layout import hub_checkpoint
from planning import plan_of

from raymerge.compute import open_operations
from raymerge.merging.scan import SAMPLE_STEP, SAMPLE_TAKE, Scanner, held_windows
from raymerge.planning.nouns import TensorJob


def job_of(count: int, method: str = "linear", dtype: str = "bfloat16") -> TensorJob:
    inputs = [{"model": name, "parameters": {"weight": 0.5}} for name in "AB"]
    recipe = {"merge_method": method, "models": inputs, "dtype": dtype}
    if method != "linear":
        recipe |= {"models": inputs[1:], "base_model": "A"}
    models = [hub_checkpoint(name, {"w": (count,)}, file_bytes=10**12) for name in "AB"]
    return next(job for shard in plan_of(yaml.safe_dump(recipe), *models).shards for job in shard.jobs)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("count", [1, SAMPLE_TAKE + 1, SAMPLE_STEP, 5 * SAMPLE_STEP + 7, 40 * SAMPLE_STEP - 1])
def test_a_sample_is_the_start_of_every_step_of_each_block(count: int, device: str) -> None:
    job, operations, block = job_of(count), open_operations(device), SAMPLE_STEP
    unit = block * (SAMPLE_STEP // SAMPLE_TAKE)  # elements that a block's sample is taken from
    stored = [np.random.default_rng(i).normal(size=count).astype(np.float32).view(np.uint32) >> 16 for i in range(2)]
    raw = [each.astype(np.uint16).view(np.uint8) for each in stored]
    scanner = Scanner(job, operations, block, lambda _rows: held_windows(job, raw))
    start = 0
    for found in scanner.scan_to_count(sample=True):
        places = np.arange(start, min(start + unit, count))
        places = places[(places - start) % SAMPLE_STEP < SAMPLE_TAKE]
        assert found.count == len(places)
        for x, codes in zip(found.x, stored, strict=True):
            held = np.asarray(x)
            held = held if held.dtype == np.uint16 else held.view(np.uint32) >> 16
            assert np.array_equal(held, codes[places])
        start += unit
    assert start >= count


@pytest.mark.parametrize(
    ("method", "dtype", "device", "sizes"),
    [
        ("linear", "bfloat16", "cpu", [512, 188]),
        ("linear", "float32", "cpu", [128] * 5 + [60]),
        ("linear", "bfloat16", "torch:cpu", [64] * 10 + [60]),
        ("ties", "bfloat16", "cpu", [128] * 5 + [60]),
    ],
)
def test_blocks_are_longer_where_nothing_is_decoded(method: str, dtype: str, device: str, sizes: list[int]) -> None:
    """By far for a method that works in place and puts its results where they belong; else twice as long."""
    job = job_of(700, method, dtype)
    raw = [np.zeros(1400, np.uint8) for _ in range(2)]
    scanner = Scanner(job, open_operations(device), 64, lambda _rows: held_windows(job, raw))
    assert [block.count for block in scanner.scan(rows=False)] == sizes
    assert [block.start for block in scanner.scan(rows=False)] == [sum(sizes[:i]) for i in range(len(sizes))]


@pytest.mark.parametrize(("method", "rows"), [("della", 32), ("arcee_fusion", 4)])
def test_blocks_of_whole_rows_are_longer_for_methods_in_place_alone(method: str, rows: int) -> None:
    job = job_of(700, method)
    job = replace(job, output=replace(job.output, shape=(70, 10)))
    raw = [np.zeros(1400, np.uint8) for _ in range(2)]
    scanner = Scanner(job, open_operations("cpu"), 40, lambda _rows: held_windows(job, raw))
    assert next(scanner.scan(rows=True)).count == 10 * rows
