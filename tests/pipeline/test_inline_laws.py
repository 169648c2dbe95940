"""Whatever the schedule, the same bytes; whatever the shard size, the same tensors; nothing half-written or lost."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_tensors, write_deepseek, write_llama
from merges import folder_digest, kill_when, start_merge, two_tune_recipe
from page_cache import need_lending

import raymerge
from raymerge.errors import ChangedError, ExecutionError, PlanError
from raymerge.merging import buffers, results, shard
from raymerge.output.verify import verify
from raymerge.storage import local_writer
from raymerge.storage.local import LocalStore

METHODS = ("ties", "dare_ties", "task_arithmetic", "della")
MOST_LENT = 2_000_000  # less than two embeddings take


def merge(config: Any, out: Path, **options: Any) -> raymerge.MergeResult:
    return raymerge.merge(config, out, executor="inline", **{"out_shard_size": "2MB", **options})


def least_memory(config: Any, out: Path) -> str:
    """The least --task-memory that the refusal of a smaller one names: what fits in no less must stream."""
    with pytest.raises(PlanError) as refused:
        merge(config, out, task_cpus=1, task_memory="1MiB")
    needed = [int(re.search(r"--task-memory (\d+)MiB", problem.remedy)[1]) for problem in refused.value.problems]
    return f"{max(needed)}MiB"


@pytest.mark.parametrize("method", METHODS)
def test_threads_blocks_and_memory_do_not_change_a_byte(
    models: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = two_tune_recipe(models, method)
    merge(config, tmp_path / "one", task_cpus=1)
    merge(config, tmp_path / "two", task_cpus=2)
    merge(config, tmp_path / "streamed", task_cpus=1, task_memory=least_memory(config, tmp_path / "streamed"))
    monkeypatch.setattr("raymerge.merging.shard.BLOCK_ELEMENTS", 8192)
    merge(config, tmp_path / "small blocks", task_cpus=2)
    first = folder_digest(tmp_path / "one")
    assert len([name for name in first if name.endswith(".safetensors")]) > 3
    for other in ("two", "streamed", "small blocks"):
        assert folder_digest(tmp_path / other) == first, other


def test_a_small_budget_really_streams(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = shard._Run._stream
    monkeypatch.setattr(shard._Run, "_stream", lambda self, job: (seen.append(job.output.name), original(self, job))[1])
    config = two_tune_recipe(models)
    merge(config, tmp_path / "out", task_cpus=1, task_memory=least_memory(config, tmp_path / "out"))
    assert "model.embed_tokens.weight" in seen


def test_hash_seed_does_not_change_a_byte(models: Path, tmp_path: Path) -> None:
    config = json.dumps(two_tune_recipe(models, "dare_ties"))
    code = f"import raymerge, sys; raymerge.merge({config!r}, sys.argv[1], executor='inline', out_shard_size='2MB')"
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        subprocess.run([sys.executable, "-c", code, str(out)], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        found.append(folder_digest(out))
    assert found[0] == found[1]


@pytest.mark.parametrize("size", ["300KB", "1MB", "1B"])
def test_shard_size_does_not_change_a_tensor(models: Path, tmp_path: Path, size: str) -> None:
    config = two_tune_recipe(models, "dare_ties")
    merge(config, tmp_path / "reference")
    merge(config, tmp_path / "other", out_shard_size=size)
    reference, other = read_tensors(tmp_path / "reference"), read_tensors(tmp_path / "other")
    assert reference.keys() == other.keys()
    for name, tensor in reference.items():
        np.testing.assert_array_equal(tensor, other[name])


def test_seeds_change_random_methods_and_nothing_else(models: Path, tmp_path: Path) -> None:
    for method, differs in (("dare_ties", True), ("ties", False)):
        merge(two_tune_recipe(models, method), tmp_path / f"{method} 0", random_seed=0)
        merge(two_tune_recipe(models, method), tmp_path / f"{method} 1", random_seed=1)
        zero, one = folder_digest(tmp_path / f"{method} 0"), folder_digest(tmp_path / f"{method} 1")
        zero.pop("raymerge.json"), one.pop("raymerge.json")
        assert (zero != one) is differs


def test_a_killed_process_group_is_continued(models: Path, tmp_path: Path) -> None:
    """Finished shards are not touched again, nothing stray stays, and all files equal an undisturbed run's."""
    config = two_tune_recipe(models, "dare_ties")
    merge(config, tmp_path / "undisturbed", out_shard_size="200KB")
    out = tmp_path / "out"
    options = {"executor": "inline", "out_shard_size": "200KB", "task_cpus": 1}
    process = start_merge(config, out, seconds_per_tensor=0.05, **options)
    kill_when(process, lambda: len(list(out.glob("*.safetensors"))) >= 3)
    finished = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("*.safetensors")}
    assert 3 <= len(finished) < len(list((tmp_path / "undisturbed").glob("*.safetensors")))
    assert json.loads((out / "raymerge.json").read_text())["state"] == "running"
    result = merge(config, out, out_shard_size="200KB")
    assert result.kept_count == len(finished)
    for name, (inode, mtime) in finished.items():
        stat = (out / name).stat()
        assert (stat.st_ino, stat.st_mtime_ns) == (inode, mtime)
    assert folder_digest(out) == folder_digest(tmp_path / "undisturbed")


def test_another_plan_is_refused_by_name_and_a_comment_resumes(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = json.dumps(two_tune_recipe(models), indent=1) + "\n"
    merge(text, out)
    before = folder_digest(out)
    with pytest.raises(PlanError, match=r"models\[0\]\.parameters\.weight 0\.6 -> 0\.5"):
        merge(two_tune_recipe(models, weights=(0.5, 0.4)), out)
    with pytest.raises(PlanError, match="out_shard_size"):
        merge(text, out, out_shard_size="1MB")
    assert folder_digest(out) == before
    again = merge("# only a comment\n" + text, out)
    assert again.kept_count == again.shard_count
    shards = {name: value for name, value in folder_digest(out).items() if name.endswith(".safetensors")}
    assert shards.items() <= before.items()


def test_a_changed_plan_after_an_unfinished_run_is_refused_too(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(two_tune_recipe(models), out)
    manifest = json.loads((out / "raymerge.json").read_text())
    manifest["state"] = "running"
    (out / "raymerge.json").write_text(json.dumps(manifest))
    with pytest.raises(PlanError, match="holds another merge"):
        merge(two_tune_recipe(models, weights=(1, 1)), out)


def test_overwrite_replaces_and_leaves_nothing_of_the_old(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(two_tune_recipe(models), out, out_shard_size="300KB")
    merge(two_tune_recipe(models, weights=(1, 1)), out, out_shard_size="1B", overwrite=True)
    merge(two_tune_recipe(models, weights=(1, 1)), tmp_path / "fresh", out_shard_size="1B")
    assert folder_digest(out) == folder_digest(tmp_path / "fresh")


def test_foreign_weights_are_refused(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(PlanError, match=r"model\.safetensors"):
        merge(two_tune_recipe(models), out)
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]


def test_the_output_is_no_input(models: Path) -> None:
    with pytest.raises(PlanError, match="one of the models"):
        merge(two_tune_recipe(models), models / "a", overwrite=True)


def test_nan_fails_by_name_and_leaves_finished_shards(tmp_path: Path) -> None:
    write_llama(tmp_path / "a", dtype="float32")
    write_llama(tmp_path / "b", dtype="float32", seed=1)
    tensor = read_tensors(tmp_path / "b")["model.norm.weight"]
    assert tensor.size
    data = (tmp_path / "b" / "model.safetensors").read_bytes()
    bad = data.replace(tensor.astype("<f4").tobytes(), np.full(tensor.size, np.nan, "<f4").tobytes())
    (tmp_path / "b" / "model.safetensors").write_bytes(bad)
    config = {
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in "ab"],
    }
    with pytest.raises(ExecutionError, match=r"model\.norm\.weight"):
        merge(config, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    merge(config, tmp_path / "out", nan="warn")
    assert np.isnan(read_tensors(tmp_path / "out")["model.norm.weight"]).all()


def test_routed_experts_and_next_n_layers_are_all_accounted_for(tmp_path: Path) -> None:
    """A dense first layer, routed experts behind it, and an extra layer numbered like a layer."""
    for seed, name in enumerate("ab"):
        write_deepseek(tmp_path / name, seed=seed)
    config = {
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in "ab"],
    }
    merge(config, tmp_path / "whole")
    inputs = read_tensors(tmp_path / "a")
    assert read_tensors(tmp_path / "whole").keys() == inputs.keys()
    layers = json.loads((tmp_path / "a" / "config.json").read_text())["num_hidden_layers"]
    stacked = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(tmp_path / "a"), "layer_range": [0, layers]}]},
            {"sources": [{"model": str(tmp_path / "b"), "layer_range": [1, layers]}]},
        ],
    }
    plan = raymerge.plan(stacked)
    for model in plan.models:
        told = [name for line in plan.ledger if line.model == model.reference for name in line.tensors]
        assert sorted(told) == sorted(model.tensors)
    extra = [line for line in plan.ledger if line.fate == "dropped" and "extra layer" in line.rule]
    assert extra
    assert all(f".layers.{layers}." in name for line in extra for name in line.tensors)


def test_tensors_are_those_of_the_files_in_their_order(models: Path, tmp_path: Path) -> None:
    config = two_tune_recipe(models, "dare_ties")
    merge(config, tmp_path / "out", random_seed=3)
    from safetensors.torch import load_file

    stored = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        stored.update(load_file(path))
    found = dict(raymerge.tensors(config, random_seed=3, out_shard_size="2MB"))
    assert found.keys() == stored.keys()
    for name, tensor in found.items():
        assert tensor.dtype == stored[name].dtype
        assert tensor.equal(stored[name]), name
    plan = raymerge.plan(config, random_seed=3)
    assert list(found) == [job.output.name for shard in plan.shards for job in shard.jobs]


def test_bytes_that_are_lent_and_bytes_that_are_read_merge_alike(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_lending(models / "base" / "config.json")
    config = two_tune_recipe(models, "ties")
    lent: list[int] = []
    lend = LocalStore.lend

    def watched(self: LocalStore, url: str, *, offset: int, nbytes: int, version: str) -> Any:
        found = lend(self, url, offset=offset, nbytes=nbytes, version=version)
        lent.extend([nbytes] if found else [])
        return found

    monkeypatch.setattr(LocalStore, "lend", watched)
    merge(config, tmp_path / "lent")
    assert sum(lent) >= 3 << 20, "three inputs' embeddings at least"
    monkeypatch.setattr(LocalStore, "lend", lambda *_, **__: None)
    merge(config, tmp_path / "read")
    assert folder_digest(tmp_path / "lent") == folder_digest(tmp_path / "read")


@pytest.mark.parametrize("method", [*METHODS, "slerp"])
def test_large_tensors_are_lent_in_windows_and_merge_alike(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    need_lending(models / "base" / "config.json")
    config = two_tune_recipe(models, method)
    if method == "slerp":
        config |= {"models": [{"model": f"{models}/base"}, {"model": f"{models}/a"}], "parameters": {"t": 0.3}}
    merge(config, tmp_path / "whole")
    monkeypatch.setattr("raymerge.merging.shard._LENT_WHOLE_BYTES", MOST_LENT)
    monkeypatch.setattr("raymerge.planning.memory.BLOCK_ELEMENTS", 16384)
    present: list[int] = [0]
    loads: list[int] = []
    lend = LocalStore.lend

    def watched(self: LocalStore, url: str, **options: Any) -> Any:
        found = lend(self, url, **options)

        def load(start: int, end: int) -> None:
            loads.append(end - start)
            present.append(present[-1] + end - start)
            found.load(start, end)

        def release(start: int, end: int) -> None:
            present.append(present[-1] - (end - start))
            found.release(start, end)

        return replace(found, load=load, release=release) if found else None

    monkeypatch.setattr(LocalStore, "lend", watched)
    merge(config, tmp_path / "windows", task_cpus=1)
    assert folder_digest(tmp_path / "windows") == folder_digest(tmp_path / "whole")
    assert len(loads) >= 8
    assert max(present) <= MOST_LENT // 2
    assert present[-1] == 0


def test_a_last_large_tensor_begins_early_and_is_written_in_its_turn(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    merge_held = shard.merge_held

    def watched(job: Any, *args: Any, **options: Any) -> int:
        began.append(job.output.name)
        time.sleep(0.01)
        return merge_held(job, *args, **options)

    monkeypatch.setattr(shard, "merge_held", watched)
    config = two_tune_recipe(models)
    merge(config, tmp_path / "one", task_cpus=1, out_shard_size="1GB")
    in_order = list(began)
    began.clear()
    merge(config, tmp_path / "two", task_cpus=2, out_shard_size="1GB")
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    assert in_order[-1] == "lm_head.weight"
    assert began.index("lm_head.weight") < len(began) - 3


def test_what_is_merged_before_its_turn_is_written_at_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the first tensor of the file waits until three that follow it have been written."""
    config = two_tune_recipe(models)
    merge(config, tmp_path / "in turn", task_cpus=1, out_shard_size="1GB")
    monkeypatch.setattr(local_writer, "_DIRECT_FROM_BYTES", 1)
    monkeypatch.setattr(results, "_LEAST_PART_BYTES", 8192)
    monkeypatch.setattr(buffers, "_MAP_FROM_BYTES", 1)  # so that all of them lie on whole pages
    with LocalStore().create(str(tmp_path / "probe"), nbytes=8192) as probe:
        if not probe.early_block:
            pytest.skip("the file system takes no direct writes")
    early: list[int] = []
    enough = threading.Event()
    write_early, merge_held = local_writer.LocalWriter.write_early, shard.merge_held

    def watched(self: local_writer.LocalWriter, data: Any, position: int) -> Future[None]:
        early.append(position)
        if len(early) == 3:
            enough.set()
        return write_early(self, data, position)

    def held_up(job: Any, *args: Any, **options: Any) -> int:
        if job.output.name == "model.embed_tokens.weight":
            assert enough.wait(30)
        return merge_held(job, *args, **options)

    monkeypatch.setattr(local_writer.LocalWriter, "write_early", watched)
    monkeypatch.setattr(shard, "merge_held", held_up)
    merge(config, tmp_path / "early", task_cpus=2, out_shard_size="1GB")
    assert len(set(early)) == len(early) >= 3
    assert folder_digest(tmp_path / "early") == folder_digest(tmp_path / "in turn")
    assert verify(str(tmp_path / "early"), full=True).problems == ()


def test_lent_bytes_that_change_under_a_merge_are_an_error(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_lending(models / "base" / "config.json")
    lend = LocalStore.lend

    def changed() -> None:
        raise ChangedError("changed since planning")

    def watched(self: LocalStore, url: str, **options: Any) -> Any:
        found = lend(self, url, **options)
        return replace(found, confirm=changed) if found else None

    monkeypatch.setattr(LocalStore, "lend", watched)
    with pytest.raises(ChangedError):
        merge(two_tune_recipe(models), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
