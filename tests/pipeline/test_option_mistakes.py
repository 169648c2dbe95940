"""Options of the wrong kind are refused by name, before anything is read."""

from typing import Any

import pytest

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


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_devices_that_there_may_be(device: str) -> None:
    assert MergeOptions(device=device).device == device


@pytest.mark.parametrize("config", [5, b"merge_method: linear", None, ["linear"]])
def test_a_recipe_is_text_a_path_or_a_mapping(config: Any) -> None:
    with pytest.raises(RecipeError, match=type(config).__name__):
        raymerge.plan(config)
