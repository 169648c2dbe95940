"""What a scan hands to a method, from inputs that lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hub_layout import hub_checkpoint
from planning import plan_of

from raymerge.compute import open_operations
from raymerge.merging.scan import SAMPLE_STEP, SAMPLE_TAKE, Scanner, held_windows
from raymerge.planning.nouns import TensorJob

RECIPE = yaml.safe_dump(
    {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 0.5}} for name in "AB"]}
)


def job_of(count: int) -> TensorJob:
    models = [hub_checkpoint(name, {"w": (count,)}, file_bytes=10**12) for name in "AB"]
    return next(job for shard in plan_of(RECIPE, *models).shards for job in shard.jobs)


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


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [128, 128, 44]), ("torch:cpu", [64] * 4 + [44])])
def test_blocks_are_twice_as_long_where_nothing_is_decoded(device: str, sizes: list[int]) -> None:
    job = job_of(300)
    raw = [np.zeros(600, np.uint8) for _ in range(2)]
    scanner = Scanner(job, open_operations(device), 64, lambda _rows: held_windows(job, raw))
    assert [block.count for block in scanner.scan(rows=False)] == sizes
    assert [block.start for block in scanner.scan(rows=False)] == [sum(sizes[:i]) for i in range(len(sizes))]
