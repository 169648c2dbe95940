"""Plans of the largest open models, from headers alone, within seconds and a bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sparse_models import FullSize, deepseek_671b, llama_70b, llama_405b, write_sparse

PLAN = """
import json, sys, time, raymerge
started = time.process_time()
plan = raymerge.plan(json.loads(sys.argv[1]), task_memory="1GiB")
seconds = time.process_time() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024
largest = max(shard.projected_bytes for shard in plan.shards)
print(json.dumps([seconds, peak, plan.tensor_count, plan.output_bytes, largest]))
"""


def recipe(folder: Path, count: int) -> dict[str, Any]:
    models = [{"model": str(folder / str(i)), "parameters": {"weight": 0.5, "density": 0.5}} for i in range(1, count)]
    return {"merge_method": "ties", "base_model": str(folder / "0"), "models": models}


@pytest.mark.parametrize(
    ("model", "count", "cpu_seconds", "peak_bytes"),
    [
        pytest.param(llama_70b, 4, 3, 0.3e9, id="70b"),
        pytest.param(llama_405b, 2, 20, 1.5e9, id="405b"),
        pytest.param(deepseek_671b, 3, 20, 1.5e9, id="671b"),
    ],
)
def test_full_size_models_plan_quickly(
    model: Any, count: int, cpu_seconds: float, peak_bytes: float, tmp_path: Path
) -> None:
    full: FullSize = model()
    for index in range(count):
        write_sparse(tmp_path / str(index), full)
    command = [sys.executable, "-c", PLAN, json.dumps(recipe(tmp_path, count))]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert answer.returncode == 0, answer.stderr
    seconds, peak, tensors, nbytes, largest = json.loads(answer.stdout)
    assert tensors == len(full.tensors)
    assert nbytes == full.nbytes
    assert largest <= 1 << 30
    assert seconds < cpu_seconds
    assert peak < peak_bytes
