"""Layers and the embedding of a 70B model, merged at full size under 1 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sparse_models import fill, llama_70b, write_sparse

GIB = 1 << 30

MERGE = """
import gc, json, sys
from pathlib import Path
import raymerge
from raymerge.merging import shard
from raymerge.merging.peak import peak_bytes, reset_peak

plain, receipts = shard.run_shard, []
shard.run_shard = lambda *arguments: receipts.append(plain(*arguments)) or receipts[-1]
recipe, small, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
options = {"executor": "inline", "task_cpus": 1}
raymerge.merge(small, out + "-small", **options)
gc.collect()
reset_peak()
baseline = peak_bytes()
receipts.clear()
plan = raymerge.plan(recipe, out, task_memory="1GiB", **options)
raymerge.merge(recipe, out, task_memory="1GiB", **options)
projected = {each.file_name: each.projected_bytes for each in plan.shards}
print(json.dumps([baseline, [(each.file_name, each.peak_bytes, projected[each.file_name]) for each in receipts]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_layers_and_the_embedding_of_a_70b_model_stay_under_1_gib(tmp_path: Path) -> None:
    """11 GB of inputs; matrices of 470 MB and the embedding of 2.1 GB stream. One matrix holds numbers, the rest 0."""
    models = tmp_path / "models"
    for number, name in enumerate(("base", "a", "b", "c")):
        write_sparse(models / name, llama_70b(layers=2, head=False))
        fill(models / name, ["model.layers.1.mlp.down_proj.weight"], seed=number)

    tunes = [{"model": f"{models}/{name}", "parameters": {"weight": 0.4, "density": 0.5}} for name in "abc"]
    recipe = json.dumps({"merge_method": "ties", "base_model": f"{models}/base", "models": tunes})
    command = [sys.executable, "-c", MERGE, recipe, _small(tmp_path / "small"), str(tmp_path / "out")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=850)
    assert answer.returncode == 0, answer.stderr
    baseline, shards = json.loads(answer.stdout.splitlines()[-1])
    assert len(shards) >= 3
    for file_name, peak, projected in shards:
        assert peak - baseline < projected <= GIB, f"{file_name}: {peak - baseline:,} of {projected:,}"


def _small(folder: Path) -> str:
    from checkpoints import write_llama

    base = write_llama(folder / "base", hidden=64)
    models = [
        {
            "model": str(write_llama(folder / name, delta_of=base, hidden=64)),
            "parameters": {"weight": 1, "density": 0.5},
        }
        for name in "ab"
    ]
    return json.dumps({"merge_method": "ties", "base_model": str(base), "models": models})
