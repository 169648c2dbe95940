"""A value that is no number is told of whoever made it: this run, an earlier one, one that was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_tensors, write_llama
from merges import folder_digest, kill_when, start_merge
from s3_server import S3Server, s3_env

import raymerge
from raymerge.errors import ExecutionError
from raymerge.storage import store_for

BAD = "model.norm.weight"
OPTIONS: dict[str, Any] = {"executor": "inline", "out_shard_size": "4KB"}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """The last file of its output gets NaN."""
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, dtype="float32", seed=seed, layers=2)
    norm = read_tensors(tmp_path / "b")[BAD]
    path = tmp_path / "b" / "model.safetensors"
    path.write_bytes(
        path.read_bytes().replace(norm.astype("<f4").tobytes(), np.full(norm.size, np.nan, "<f4").tobytes())
    )
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in "ab"]
    return {"merge_method": "linear", "models": models}


def merge(recipe: dict[str, Any], out: Path | str, nan: str) -> raymerge.MergeResult:
    return raymerge.merge(recipe, out, nan=nan, **OPTIONS)


def test_a_finished_output_is_no_better_for_being_there(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = merge(recipe, out, "warn")
    assert list(first.nonfinite) == [BAD]
    before = folder_digest(out)
    assert merge(recipe, out, "warn").nonfinite == first.nonfinite
    with pytest.raises(ExecutionError, match=rf"{BAD} in model.*: 32 results of an earlier run are not finite"):
        merge(recipe, out, "error")
    assert folder_digest(out) == before


@pytest.mark.parametrize("place", ["local", "s3"])
def test_an_interrupted_run_leaves_no_secret(
    recipe: dict[str, Any], tmp_path: Path, place: str, s3_process: S3Server
) -> None:
    """The shard with NaN is there, the run that only warned of it is dead, and its manifest does not know."""
    with s3_env(s3_process):
        out = str(tmp_path / "out") if place == "local" else s3_process.folder()
        result = merge(recipe, out, "warn")
        whole = store_for(out).read(f"{out}/raymerge.json", max_bytes=1 << 20)
        document = json.loads(whole)
        shards = [{key: shard[key] for key in ("file", "nbytes")} for shard in document["shards"]]
        assert len(shards) > 1
        unfinished = {**document, "state": "running", "shards": shards, "nan": "warn"}
        store_for(out).put(f"{out}/raymerge.json", json.dumps(unfinished).encode())
        with pytest.raises(ExecutionError, match=f"{BAD} in .* are not finite"):
            merge(recipe, out, "error")
        again = merge(recipe, out, "warn")
        assert again.kept_count == len(shards)
        assert again.nonfinite == result.nonfinite
        assert store_for(out).read(f"{out}/raymerge.json", max_bytes=1 << 20) == whole


def test_a_killed_run_says_that_it_only_warned(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_merge(recipe, out, seconds_per_tensor=0.1, nan="warn", **OPTIONS)
    kill_when(process, lambda: any(out.glob("*.safetensors")))
    assert json.loads((out / "raymerge.json").read_text())["nan"] == "warn"
    with pytest.raises(ExecutionError, match=BAD):
        merge(recipe, out, "error")
    merge(recipe, out, "warn")
    assert "nan" not in json.loads((out / "raymerge.json").read_text())
    merge(recipe, tmp_path / "at once", "warn")
    assert folder_digest(out) == folder_digest(tmp_path / "at once")


def test_tensors_in_memory_are_held_to_the_same(recipe: dict[str, Any]) -> None:
    with pytest.raises(ExecutionError, match=f"{BAD}: 32 of 32 results are not finite"):
        dict(raymerge.tensors(recipe))
    assert not np.isfinite(dict(raymerge.tensors(recipe, nan="warn"))[BAD].numpy()).any()
