"""What steps hold is in the projection: a worker's peak stays below it, whether tensors are held or streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_safetensors
from recipe_memory import check_peak


def recipe(folder: Path, name: str) -> dict[str, Any]:
    models = (f"{folder}/{name}+{folder}/{name}-lora", f"{folder}/{name}")
    return {"merge_method": "linear", "models": [{"model": each, "parameters": {"weight": 1}} for each in models]}


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
    check_peak(recipe(tmp_path, "small"), recipe(tmp_path, "large"), tmp_path, budget_mib << 20)
