"""Aligned merges have the same bytes however they are cut and run, and go on where they were killed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from checkpoints import read_tensors
from merges import folder_digest, kill_when, start_merge
from vocabularies import bpe, write_model

import raymerge
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.shard import run_shard
from raymerge.planning.memory import FLOOR_BYTES


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vocabularies that order their tokens differently, in several element types."""
    folder = tmp_path_factory.mktemp("models")
    kinds = (("a", 3000, 3000, "bfloat16"), ("b", 3107, 3200, "float32"), ("c", 2500, 2500, "bfloat16"))
    for name, count, rows, dtype in kinds:
        write_model(folder / name, bpe(count, seed=ord(name)), rows=rows, seed=ord(name), hidden=96, dtype=dtype)
    return folder


def recipe(models: Path, method: str = "ties", **tokenizer: Any) -> dict[str, Any]:
    parameters = {"weight": 0.5} | ({"density": 0.6} if method == "ties" else {})
    return {
        "merge_method": method,
        "base_model": str(models / "a"),
        "models": [{"model": str(models / name), "parameters": parameters} for name in "bc"],
        **(tokenizer or {"tokenizer_source": "union"}),
    }


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "nuslerp"])
def test_same_bytes_whatever_the_memory(method: str, models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from raymerge.merging import schedule, shard

    given = recipe(models, method)
    if method == "nuslerp":
        given |= {"parameters": {"nuslerp_flatten": False}}
    digests = []
    for number, way in enumerate(["plain", "threads", "blocks", "windows", "odd windows"]):
        with monkeypatch.context() as patch:
            if way == "blocks":
                patch.setattr(shard, "BLOCK_ELEMENTS", 96 * 11)
            if way.endswith("windows"):
                patch.setattr(schedule, "is_held", lambda job, room: False)
                size = 96 * 1024 if way == "windows" or method == "nuslerp" else 4096 * 7 + 64
                patch.setattr(shard, "window_elements", lambda job, room, rows, size=size: size)
            out = tmp_path / f"out{number}"
            raymerge.merge(given, out, executor="inline", **({"task_cpus": 2} if way == "threads" else {}))
        digests.append(folder_digest(out))
    assert all(digest == digests[0] for digest in digests)


def test_the_smallest_memory_streams_and_gives_the_same_bytes(tmp_path: Path) -> None:
    """Tensors that do not fit a task are streamed, in the projected memory."""
    for name, count in (("a", 21_000), ("b", 20_000)):
        write_model(tmp_path / name, bpe(count, seed=ord(name)), rows=count, seed=1, hidden=512, head=False)
    given = {
        "merge_method": "linear",
        "tokenizer_source": "union",
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in "ab"],
    }
    digests = []
    for number, budget in enumerate([1 << 30, FLOOR_BYTES]):
        planned = raymerge.plan(given, executor="inline", task_cpus=1, task_memory=budget)
        (task,) = planned.shards
        assert task.projected_bytes <= budget
        out = tmp_path / f"out{number}"
        raymerge.merge(given, out, executor="inline", task_cpus=1, task_memory=budget)
        digests.append((out / "model.safetensors").read_bytes())
    largest = max(sum(ref.nbytes for ref in job.refs) for job in task.jobs)
    assert largest > FLOOR_BYTES // 2
    assert digests[0] == digests[1]


def test_a_task_travels_small_and_whole(models: Path, tmp_path: Path) -> None:
    planned = raymerge.plan(recipe(models), executor="inline")
    (task,) = planned.shards
    packed = pickle.dumps(task)
    assert len(packed) < 150_000  # maps of 3 x 5,000 rows for two tensors, and 12 jobs
    copied = pickle.loads(packed)
    assert copied == task
    options = raymerge.pipeline.MergeOptions(executor="inline")
    for number, each in enumerate((task, copied)):
        run_shard(each, ShardOptions(out=str(tmp_path / f"{number}"), memory=options.memory(str(tmp_path))))
    assert folder_digest(tmp_path / "0") == folder_digest(tmp_path / "1")


def test_tensors_in_memory_are_those_of_the_file(models: Path, tmp_path: Path) -> None:
    raymerge.merge(recipe(models), tmp_path / "out", executor="inline")
    stored = read_tensors(tmp_path / "out")
    in_memory = dict(raymerge.tensors(recipe(models)))
    assert all((in_memory[name].float().numpy() == stored[name]).all() for name in stored)


def test_a_survey_looks_at_aligned_rows(models: Path, tmp_path: Path) -> None:
    """A first phase over the whole model sees the output's rows, held or streamed."""
    given = recipe(models) | {"parameters": {"trim_scope": "model"}}
    digests = []
    for number in range(2):
        options: dict[str, Any] = {"task_cpus": 1} if number else {}
        raymerge.merge(given, tmp_path / f"out{number}", executor="inline", **options)
        digests.append(folder_digest(tmp_path / f"out{number}"))
    assert digests[0] == digests[1]


def test_a_killed_merge_goes_on(models: Path, tmp_path: Path) -> None:
    given = recipe(models)
    options = {"executor": "inline", "out_shard_size": 600_000}
    raymerge.merge(given, tmp_path / "whole", **options)
    out = tmp_path / "killed"
    process = start_merge(given, out, seconds_per_tensor=0.3, **options)
    kill_when(process, lambda: len(list(out.glob("model-*.safetensors"))) >= 1)
    assert not (out / "model.safetensors.index.json").exists()
    raymerge.merge(given, out, **options)
    assert folder_digest(out) == folder_digest(tmp_path / "whole")


def test_another_rule_is_another_plan(models: Path, tmp_path: Path) -> None:
    def ruled(kind: dict[str, Any]) -> dict[str, Any]:
        tokens = {"<s>": {"source": kind, "force": True}}
        return recipe(models, tokenizer={"source": "union", "tokens": tokens})

    zero = ruled({"kind": "zero"})
    other = ruled({"kind": "model_token", "model": str(models / "b"), "token": "</s>"})
    raymerge.merge(zero, tmp_path / "out", executor="inline")
    before = folder_digest(tmp_path / "out")
    with pytest.raises(raymerge.RaymergeError, match="tokenizer") as caught:
        raymerge.merge(other, tmp_path / "out", executor="inline")
    assert "zero" in str(caught.value)
    assert folder_digest(tmp_path / "out") == before
    digests = {raymerge.plan(each, executor="inline").digest for each in (zero, other, recipe(models))}
    assert len(digests) == 3


def test_models_come_from_wherever_they_lie(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read from stores of any kind, whole tensors or windows of them."""
    import fsspec

    from raymerge.merging import schedule

    store = fsspec.filesystem("memory")
    for name in "abc":
        store.put(str(models / name), f"/rows/{name}", recursive=True)
    local = recipe(models)
    remote = {
        **local,
        "base_model": "memory://rows/a",
        "models": [{**each, "model": f"memory://rows/{Path(each['model']).name}"} for each in local["models"]],
    }
    raymerge.merge(local, tmp_path / "local", executor="inline")
    raymerge.merge(remote, tmp_path / "held", executor="inline")
    monkeypatch.setattr(schedule, "is_held", lambda job, room: False)
    raymerge.merge(remote, tmp_path / "streamed", executor="inline")
    weights = [read_tensors(tmp_path / name) for name in ("local", "held", "streamed")]
    assert all((each[name] == weights[0][name]).all() for each in weights[1:] for name in weights[0])
