"""The plan says for each model how many rows were matched, filled and from where, dropped, and kept as padding."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from vocabularies import words, write_model

import raymerge
from raymerge.cli.screens.plan import Surroundings, plan_screen, plan_values


def test_the_plan_tells_what_becomes_of_rows(tmp_path: Path) -> None:
    write_model(tmp_path / "a", words(["<unk>", "x", "y", "z"]), rows=6, seed=1)
    write_model(tmp_path / "b", words(["<unk>", "q", "r", "x"]), rows=4, seed=2)
    recipe = {
        "merge_method": "linear",
        "base_model": str(tmp_path / "a"),
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"],
        "tokenizer": {"source": "base", "tokens": {"z": {"source": {"kind": "zero"}}}},
    }
    planned = raymerge.plan(recipe, executor="inline")
    console = Console(width=200)
    with console.capture() as captured:
        console.print(plan_screen(planned, Surroundings(seconds=0.1)))
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert "vocabulary 4 tokens in 6 rows, from base" in lines
    assert "A 4 matched 2 rows of padding kept" in lines
    assert "B 2 matched 1 filled from a rule, 3 filled from the base, 2 dropped" in lines
    told = json.loads(json.dumps(plan_values(planned, Surroundings(seconds=0.1))["vocabulary"]))
    assert told["models"][1] == {
        "model": str(tmp_path / "b"),
        "matched": 2,
        "filled": {"a rule": 1, "the base": 3},
        "dropped": 2,
        "padding": 0,
    }
