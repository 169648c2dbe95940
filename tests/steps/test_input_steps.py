"""What steps make of stored bytes depends on the tensor alone: not on blocks, windows, threads or executors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_tensors, write_llama, write_safetensors

import raymerge
from raymerge.compute.adapter_kernels import add_product

SHAPE: dict[str, Any] = {"layers": 2, "hidden": 96, "heads": 4, "vocab": 3000, "intermediate": 200}


def write_adapter(base: Path, folder: Path, *, rank: int = 5, seed: int = 3) -> Path:
    folder.mkdir()
    random = np.random.default_rng(seed)
    arrays = {}
    for name, array in read_tensors(base).items():
        if name.endswith("_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            arrays[f"{module}.lora_A.weight"] = random.standard_normal((rank, array.shape[1])).astype(np.float32)
            arrays[f"{module}.lora_B.weight"] = random.standard_normal((array.shape[0], rank)).astype(np.float32)
    write_safetensors(folder / "adapter_model.safetensors", {name: (array, "BF16") for name, array in arrays.items()})
    (folder / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "r": {rank}, "lora_alpha": 2}}')
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 3, 4, 9])
def test_a_part_of_the_sum_is_that_part_of_the_whole(rank: int, dtype: Any) -> None:
    random = np.random.default_rng(rank)
    rows, columns = 7, 2100
    values = random.standard_normal(rows * columns).astype(dtype)
    left = random.standard_normal((rows, rank)).astype(np.float32)
    right = random.standard_normal((rank, columns)).astype(np.float32)
    whole = np.empty_like(values)
    add_product(values, 0, left, right, 0.75, whole)
    exact = values.astype(np.float64) + 0.75 * (left.astype(np.float64) @ right.astype(np.float64)).ravel()
    assert np.abs(whole - exact).max() <= np.finfo(dtype).eps * np.abs(exact).max()
    for start, end in [(0, 1), (2099, 2102), (5000, 11000), (rows * columns - 3, rows * columns)]:
        part = np.empty(end - start, dtype)
        add_product(values[start:end], start, left, right, 0.75, part)
        assert np.array_equal(part, whole[start:end])


def test_same_bytes_whatever_the_memory_and_the_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raymerge.merging import schedule, shard

    base = write_llama(tmp_path / "base", **SHAPE)
    tuned = write_llama(tmp_path / "tuned", seed=1, delta_of=base, **SHAPE)
    folder = write_adapter(base, tmp_path / "lora")
    recipe = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [
            {"model": f"{base}+{folder}", "parameters": {"weight": 0.6, "density": 0.5}},
            {"model": str(tuned), "parameters": {"weight": 0.5, "density": 0.3}},
        ],
    }
    digests = []
    for number, options in enumerate([{}, {"task_cpus": 1}, {"blocks": 4096}, {"room": 1}, {"device": "torch:cpu"}]):
        with monkeypatch.context() as patch:
            if "blocks" in options:
                patch.setattr(shard, "BLOCK_ELEMENTS", options.pop("blocks"))
            if options.pop("room", 0):
                patch.setattr(schedule, "is_held", lambda job, room: False)  # every tensor streams
                patch.setattr(shard, "window_elements", lambda job, room, rows: 131072)
            raymerge.merge(recipe, tmp_path / f"out{number}", executor="inline", **options)
        digests.append((tmp_path / f"out{number}" / "model.safetensors").read_bytes())
    assert all(digest == digests[0] for digest in digests)
    in_memory = dict(raymerge.tensors(recipe))
    stored = read_tensors(tmp_path / "out0")
    assert all(np.array_equal(in_memory[name].float().numpy(), stored[name]) for name in stored)


def test_adapters_come_from_wherever_models_do(tmp_path: Path) -> None:
    import fsspec

    base = write_llama(tmp_path / "base", **SHAPE)
    folder = write_adapter(base, tmp_path / "lora")
    store = fsspec.filesystem("memory")
    for path in (base, folder):
        store.put(str(path), f"/steps/{path.name}", recursive=True)
    local, remote = f"{base}+{folder}", "memory://steps/base+memory://steps/lora"
    found = []
    for number, model in enumerate([local, remote]):
        recipe = {"merge_method": "passthrough", "models": [{"model": model}]}
        raymerge.merge(recipe, tmp_path / f"out{number}", executor="inline")
        found.append(read_tensors(tmp_path / f"out{number}"))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    card = (tmp_path / "out0" / "README.md").read_text()
    assert "- local: base + local: lora" in card
    assert str(tmp_path) not in card
    manifest = json.loads((tmp_path / "out0" / "raymerge.json").read_text())
    assert [each["model"] for each in manifest["inputs"]] == [local, str(folder)]
