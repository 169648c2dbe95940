"""Merging straight from the hub: ranges only, commits pinned, and nothing asked twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import read_header, write_llama
from hub_server import HubServer
from merges import folder_digest

import raymerge
from raymerge.errors import PlanError

SHAPE: dict[str, Any] = {"layers": 16, "hidden": 256, "heads": 4, "vocab": 128, "intermediate": 512}
# What opening asks of one file before it knows how long the header is.
HEADER_GUESS_BYTES = 256 << 10


@pytest.fixture
def lab(hub: HubServer, tmp_path: Path) -> HubServer:
    """Two public models of 17 MB."""
    for seed, name in enumerate(("lab/one", "lab/two")):
        folder = write_llama(tmp_path / name, seed=seed, **SHAPE)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
        hub.add_folder(name, folder)
    return hub


def linear(**extra: Any) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("lab/one", "lab/two")]
    return {"merge_method": "linear", "models": models, "dtype": "bfloat16", **extra}


def test_hub_and_local_copies_merge_to_the_same_tensors(lab: HubServer, tmp_path: Path) -> None:
    raymerge.merge(linear(), tmp_path / "hub", executor="inline")
    local = json.loads(json.dumps(linear()).replace('"lab/', f'"{tmp_path}/lab/'))
    raymerge.merge(local, tmp_path / "local", executor="inline")

    def data(folder: Path) -> bytes:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        return content[8 + int.from_bytes(content[:8], "little") :]

    assert data(tmp_path / "hub") == data(tmp_path / "local")
    manifest = json.loads((tmp_path / "hub" / "raymerge.json").read_text())
    assert [(each["hub_id"], each["commit"]) for each in manifest["inputs"]] == [
        (name, lab.models[name].refs["main"]) for name in ("lab/one", "lab/two")
    ]
    card = (tmp_path / "hub" / "README.md").read_text()
    from huggingface_hub import ModelCard

    front = ModelCard(card).data
    assert front.base_model == ["lab/one", "lab/two"]
    assert front.get("base_model_relation") == "merge"
    assert front.license == "apache-2.0"
    assert str(tmp_path) not in card
    assert read_header(tmp_path / "hub" / "model.safetensors")


def test_two_layers_read_those_two_layers(lab: HubServer, tmp_path: Path) -> None:
    slices = [{"sources": [{"model": "lab/one", "layer_range": [3, 5]}]}]
    config = {"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"}
    plan = raymerge.plan(config)
    before = lab.weight_bytes
    raymerge.merge(config, tmp_path / "out", executor="inline")
    read = lab.weight_bytes - before
    whole = plan.models[0].nbytes
    side_files = sum(path.stat().st_size for path in (tmp_path / "lab" / "one").glob("*.json"))
    assert plan.read_bytes < 0.2 * whole
    assert plan.read_bytes <= read <= plan.read_bytes + HEADER_GUESS_BYTES + side_files


def test_planning_reads_no_weight(lab: HubServer) -> None:
    raymerge.plan(linear())
    assert lab.weight_bytes <= 2 * HEADER_GUESS_BYTES + 200_000


def test_a_new_readme_upstream_voids_nothing_and_new_weights_are_refused(lab: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    raymerge.merge(linear(), out, executor="inline", out_shard_size="2MB")
    before = folder_digest(out)
    folder = tmp_path / "lab" / "one"
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Another text\n")
    lab.add_folder("lab/one", folder)
    again = raymerge.merge(linear(), out, executor="inline", out_shard_size="2MB")
    assert again.kept_count == again.shard_count
    shards = {name: value for name, value in folder_digest(out).items() if name.endswith(".safetensors")}
    assert shards.items() <= before.items()
    write_llama(folder, seed=9, **SHAPE)
    lab.add_folder("lab/one", folder)
    with pytest.raises(PlanError, match="has changed"):
        raymerge.merge(linear(), out, executor="inline", out_shard_size="2MB")


def test_kept_inputs_lie_in_the_cache_and_a_second_merge_asks_for_no_weight(lab: HubServer, tmp_path: Path) -> None:
    raymerge.merge(linear(), tmp_path / "first", executor="inline", keep_inputs=True)
    assert list(lab.cache.glob("models--lab--one/snapshots/*/model.safetensors"))
    before = lab.weight_bytes
    raymerge.merge(linear(), tmp_path / "second", executor="inline")
    assert lab.weight_bytes - before < 100_000, "side files alone"
    assert folder_digest(tmp_path / "first") == folder_digest(tmp_path / "second")


def test_offline_uses_the_cache_and_refuses_what_is_not_there(
    lab: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lab/one", "lab/two"):
        lab.fill_cache(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(lab.requests)
    raymerge.merge(linear(), tmp_path / "out", executor="inline")
    assert len(lab.requests) == before
    with pytest.raises(PlanError, match="lab/three"):
        raymerge.plan(json.loads(json.dumps(linear()).replace("lab/two", "lab/three")))


def test_a_gated_model_names_its_remedy(lab: HubServer, tmp_path: Path) -> None:
    lab.add_folder("lab/gated", tmp_path / "lab" / "one", gated=True)
    with pytest.raises(PlanError, match="accept"):
        raymerge.plan(json.loads(json.dumps(linear()).replace("lab/two", "lab/gated")))
