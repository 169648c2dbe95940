"""The peak memory of a merge of one shard, in a process of its own, beside what its plan projects."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Recipe = Mapping[str, Any]


def check_peak(small: Recipe, large: Recipe, folder: Path, budget_bytes: int) -> None:
    """The peak of `large` stays below its projection, and that below the budget; `small` runs the same code before."""
    text = json.dumps([str(folder), budget_bytes, small, large])
    command = [sys.executable, __file__]
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=200)
    assert answer.returncode == 0, answer.stderr
    peak, projected = json.loads(answer.stdout)
    assert peak <= projected <= budget_bytes


def _main(folder: str, budget_bytes: int, *recipes: Recipe) -> None:
    from memory_probe import status_bytes

    import raymerge
    from raymerge.merging.nouns import ShardOptions
    from raymerge.merging.shard import run_shard
    from raymerge.options import MergeOptions

    options = MergeOptions(executor="inline", task_cpus=1, task_memory=budget_bytes)
    found = (0, 0)
    for recipe in recipes:
        (task,) = raymerge.plan(recipe, executor="inline", task_cpus=1, task_memory=budget_bytes).shards
        gc.collect()
        before = status_bytes("VmRSS")
        receipt = run_shard(task, ShardOptions(out=folder, memory=options.memory(folder)))
        found = (receipt.peak_bytes - before, task.projected_bytes)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    _main(*json.loads(sys.stdin.read()))
