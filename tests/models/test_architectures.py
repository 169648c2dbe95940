"""Whole models and stacked layers of many architectures, as transformers makes, saves and loads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_tensors
from tiny_models import FAMILIES, LAYERS, Family, run_tiny, write_tiny

import raymerge
from raymerge.output.verify import verify

CUTS = ((0, 3), (1, 4))
KEPT = [layer for first, end in CUTS for layer in range(first, end)]

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Two models of a family that differ in every value."""
    known: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in known:
            folder = tmp_path_factory.mktemp("tiny")
            known[name] = tuple(write_tiny(folder / part, FAMILIES[name], seed=i) for i, part in enumerate("ab"))
        return known[name]

    return make


def stacked(model: Path) -> dict[str, Any]:
    return {"slices": [{"sources": [{"model": str(model), "layer_range": list(cut)}]} for cut in CUTS]}


def stacking_recipe(family: Family, model: Path) -> dict[str, Any]:
    if len(family.count_keys) == 1:
        return {"merge_method": "passthrough", **stacked(model)}
    towers = {stack.rpartition(".")[0]: stacked(model) for stack in family.stacks}
    whole = {part: {"models": [{"model": str(model)}]} for part in family.parts}
    return {"merge_method": "passthrough", "modules": whole | towers}


def sources(family: Family, names: Iterable[str]) -> dict[str, str]:
    """For every tensor of the stacked model, the one it comes from."""
    came: dict[str, str] = {}
    for name in names:
        stack = next((each for each in family.stacks if name.startswith(f"{each}.")), None)
        if stack is None:
            came[name] = name
            continue
        number, _, suffix = name.removeprefix(f"{stack}.").partition(".")
        came |= {f"{stack}.{new}.{suffix}": name for new, old in enumerate(KEPT) if old == int(number)}
    return came


def counts(config: dict[str, Any], family: Family) -> list[int]:
    found = []
    for key in family.count_keys:
        section: Any = config
        for part in key.split("."):
            section = section[part]
        found.append(section)
    return found


def load_and_run(load: Callable[..., Any], folder: Path, family: Family) -> Any:
    report = verify(str(folder), load=True)
    assert report.ok, report.problems
    model = load(folder, family.auto)
    result = run_tiny(model, family)
    assert result.isfinite().all() if result.is_floating_point() else result.shape[1] >= 2
    return model


@families
def test_linear_loads_and_runs(
    family: str, made: Callable[[str], tuple[Path, Path]], load: Callable[..., Any], tell: Callable[[str], None],
    tmp_path: Path,
) -> None:  # fmt: skip
    a, b = made(family)
    models = [{"model": str(a), "parameters": {"weight": 0.25}}, {"model": str(b), "parameters": {"weight": 0.75}}]
    raymerge.merge({"merge_method": "linear", "models": models}, tmp_path / "out", executor="inline")
    first, second, merged = (read_tensors(folder) for folder in (a, b, tmp_path / "out"))
    assert merged.keys() == first.keys()
    for name, array in merged.items():
        np.testing.assert_allclose(array, 0.25 * first[name] + 0.75 * second[name], rtol=1e-6, atol=1e-7, err_msg=name)
    load_and_run(load, tmp_path / "out", FAMILIES[family])
    tell(f"{family}: linear of two loads as {FAMILIES[family].auto} and runs, {len(merged)} tensors")


@families
def test_stacked_layers_load_and_run(
    family: str, made: Callable[[str], tuple[Path, Path]], load: Callable[..., Any], tell: Callable[[str], None],
    tmp_path: Path,
) -> None:  # fmt: skip
    model, _ = made(family)
    out = tmp_path / "out"
    raymerge.merge(stacking_recipe(FAMILIES[family], model), out, executor="inline")
    before, merged = read_tensors(model), read_tensors(out)
    came = sources(FAMILIES[family], before)
    assert merged.keys() == came.keys()
    for name, array in merged.items():
        np.testing.assert_array_equal(array, before[came[name]], err_msg=name)
    config = json.loads((out / "config.json").read_text())
    assert counts(config, FAMILIES[family]) == [len(KEPT)] * len(FAMILIES[family].count_keys)
    load_and_run(load, out, FAMILIES[family])
    tell(f"{family}: {LAYERS} layers stacked to {len(KEPT)} load and run, {len(merged)} tensors")
