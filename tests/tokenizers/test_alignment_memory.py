"""Gathering rows stays within the projected memory, whether tensors are held or streamed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from vocabularies import words, write_model

MEASURE = """
import gc, json, sys
from pathlib import Path
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.shard import run_shard
import raymerge

def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS:"))

folder, budget = sys.argv[1], int(sys.argv[2])
for name in ("small", "large"):
    models = [{"model": f"{folder}/{name}-{each}", "parameters": {"weight": 1}} for each in "abc"]
    recipe = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    options = raymerge.pipeline.MergeOptions(executor="inline", task_cpus=1, task_memory=budget)
    planned = raymerge.plan(recipe, executor="inline", task_cpus=1, task_memory=budget)
    (task,) = planned.shards
    gc.collect()
    before = resident()
    receipt = run_shard(task, ShardOptions(out=folder, memory=options.memory(folder)))
print(json.dumps([receipt.peak_bytes - before, task.projected_bytes]))
"""


@pytest.mark.parametrize("budget_mib", [768, 160])
def test_the_peak_stays_below_the_projection(budget_mib: int, tmp_path: Path) -> None:
    """Three vocabularies in orders of their own, with tokens that two models have and the first lacks."""
    for name, count, hidden in (("small", 300, 32), ("large", 40_000, 512)):
        for at, model in enumerate("abc"):
            tokens = [f"t{(number * (7 + 2 * at)) % count + at * count // 8}" for number in range(count)]
            given = words(list(dict.fromkeys(tokens)))
            rows = len(given["model"]["vocab"])
            write_model(
                tmp_path / f"{name}-{model}", given, rows=rows, seed=at, hidden=hidden, head=False, dtype="bfloat16"
            )
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(budget_mib << 20)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert answer.returncode == 0, answer.stderr
    peak, projected = json.loads(answer.stdout)
    assert peak <= projected <= budget_mib << 20
