"""A small file that an earlier run of the same plan wrote goes when it is no longer wanted; what others wrote stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from merges import folder_digest

import raymerge

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    write_llama(tmp_path / "a")
    return {"merge_method": "linear", "models": [{"model": str(tmp_path / "a"), "parameters": {"weight": 1}}]}


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


@pytest.mark.parametrize("is_finished", [True, False])
def test_the_same_plan_without_tokenizer_or_card(recipe: dict[str, Any], tmp_path: Path, is_finished: bool) -> None:
    out = tmp_path / "out"
    raymerge.merge(recipe, out, executor="inline")
    assert names(out) >= {*TOKENIZER, "README.md"}
    if not is_finished:
        (out / "model.safetensors").unlink()
    for options in ({"copy_tokenizer": False}, {"copy_tokenizer": False, "write_model_card": False}, {}):
        raymerge.merge(recipe, out, executor="inline", **options)
        raymerge.merge(recipe, tmp_path / f"other{len(options)}", executor="inline", **options)
        assert folder_digest(out) == folder_digest(tmp_path / f"other{len(options)}")


def test_what_somebody_else_wrote_stays(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    raymerge.merge(recipe, out, executor="inline")
    (out / "tokenizer.json").write_text('{"changed": true}')
    (out / "vocab.txt").write_text("mine")
    raymerge.merge(recipe, out, executor="inline", copy_tokenizer=False)
    assert names(out) & {*TOKENIZER, "vocab.txt"} == {"tokenizer.json", "vocab.txt"}
    assert (out / "tokenizer.json").read_text() == '{"changed": true}'
