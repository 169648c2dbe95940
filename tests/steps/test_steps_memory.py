"""What steps hold is in the projection: a worker's peak stays below it, whether tensors are held or streamed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_safetensors

MEASURE = """
import gc, json, sys
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.shard import run_shard
import raymerge
from pathlib import Path

def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS:"))

folder, budget = sys.argv[1], int(sys.argv[2])
for name in ("small", "large"):
    recipe = {"merge_method": "linear", "models": [
        {"model": f"{folder}/{name}+{folder}/{name}-lora", "parameters": {"weight": 1}},
        {"model": f"{folder}/{name}", "parameters": {"weight": 1}}]}
    options = raymerge.pipeline.MergeOptions(executor="inline", task_cpus=1, task_memory=budget)
    planned = raymerge.plan(recipe, executor="inline", task_cpus=1, task_memory=budget)
    (task,) = planned.shards
    gc.collect()
    before = resident()
    receipt = run_shard(task, ShardOptions(out=folder, memory=options.memory(folder)))
print(json.dumps([receipt.peak_bytes - before, task.projected_bytes]))
"""


def write_pair(folder: Path, rows: int, columns: int, rank: int) -> None:
    """An embedding and an adapter of it, whose factors are turned when they are read."""
    random = np.random.default_rng(0)
    name = "model.embed_tokens"
    for path, tensors, config in (
        (folder, {f"{name}.weight": (rows, columns)}, {"num_hidden_layers": 1}),
        (
            Path(f"{folder}-lora"),
            {
                f"base_model.model.{name}.lora_embedding_A": (rank, rows),
                f"base_model.model.{name}.lora_embedding_B": (columns, rank),
            },
            {"peft_type": "LORA", "r": rank, "lora_alpha": 1},
        ),
    ):
        path.mkdir()
        arrays = {key: (random.standard_normal(shape, dtype=np.float32), "BF16") for key, shape in tensors.items()}
        is_base = path == folder
        write_safetensors(path / ("model.safetensors" if is_base else "adapter_model.safetensors"), arrays)
        (path / ("config.json" if is_base else "adapter_config.json")).write_text(json.dumps(config))


@pytest.mark.parametrize("budget_mib", [768, 240])
def test_the_peak_stays_below_the_projection(tmp_path: Path, budget_mib: int) -> None:
    write_pair(tmp_path / "small", 300, 40, 3)
    write_pair(tmp_path / "large", 120_000, 512, 64)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(budget_mib << 20)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert answer.returncode == 0, answer.stderr
    peak, projected = json.loads(answer.stdout)
    assert peak <= projected <= budget_mib << 20
