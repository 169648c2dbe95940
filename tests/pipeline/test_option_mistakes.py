"""Options of the wrong kind are refused by name, before anything is read."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama

import raymerge
from raymerge.errors import RecipeError, UsageError
from raymerge.options import MergeOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("random_seed", 1.5),
        ("random_seed", "1"),
        ("task_cpus", "2"),
        ("task_cpus", 1.5),
        ("task_cpus", 0),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("nan", "ignore"),
        ("executor", "threads"),
    ],
)
def test_values_of_the_wrong_kind_are_named(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=name):
        MergeOptions(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("address", "auto"), ("task_gpus", 1), ("max_tasks", 2), ("prefer_nodes", ("market-type=on-demand",))],
)
def test_options_of_ray_are_refused_without_it(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    assert MergeOptions(**options)
    with pytest.raises(UsageError, match=f"{name}: bears on Ray alone, the executor is inline"):
        MergeOptions(executor="inline", **options)


@pytest.mark.parametrize("labels", [("spot",), "a=b", ("=x",)])
def test_labels_that_are_none_are_shown_as_they_were_written(labels: Any) -> None:
    with pytest.raises(UsageError, match=r"prefer_nodes: found (spot|a=b|=x), expected .*KEY=VALUE"):
        MergeOptions(prefer_nodes=labels)


def test_unknown_options_name_the_nearest() -> None:
    calls = (lambda: raymerge.merge("x", "y", taskmemory="1GB"), lambda: raymerge.plan("x", taskmemory="1GB"),
             lambda: next(raymerge.tensors("x", taskmemory="1GB")))  # fmt: skip
    for call in calls:
        with pytest.raises(UsageError, match=r"taskmemory: is no option; did you mean task_memory\?") as caught:
            call()
        assert isinstance(caught.value, TypeError)
        assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    with pytest.raises(UsageError, match=r"zzz: is no option; expected executor, random_seed"):
        raymerge.plan("x", zzz=1)


@pytest.mark.parametrize("out", ["", "  ", None, 5, b"out"])
def test_an_output_has_a_name(out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llama(tmp_path / "a")
    recipe = {"merge_method": "linear", "models": [{"model": str(tmp_path / "a"), "parameters": {"weight": 1}}]}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"out: found .*; name a folder or a URL"):
        raymerge.merge(recipe, out, executor="inline")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    if out is not None:
        with pytest.raises(UsageError, match="out: found"):
            raymerge.plan(recipe, out)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_devices_that_there_may_be(device: str) -> None:
    assert MergeOptions(device=device).device == device


def test_a_device_that_is_not_there_is_found_before_anything_is_written(tmp_path: Path) -> None:
    write_llama(tmp_path / "a")
    recipe = {"merge_method": "linear", "models": [{"model": str(tmp_path / "a"), "parameters": {"weight": 1}}]}
    with pytest.raises(UsageError, match=r"device: found no cuda:99 on .*: .*; use the cpu, or a machine with a GPU"):
        raymerge.merge(recipe, tmp_path / "out", executor="inline", device="cuda:99")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("config", [5, b"merge_method: linear", None, ["linear"]])
def test_a_recipe_is_text_a_path_or_a_mapping(config: Any) -> None:
    with pytest.raises(RecipeError, match=type(config).__name__):
        raymerge.plan(config)
