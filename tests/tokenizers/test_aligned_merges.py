"""Models with different vocabularies: every row of the output is what the oracle says, and so are ids and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_tensors
from vocabularies import bpe, rows_of, token_ids, write_model
from vocabulary_oracle import UNION, Embedded, aligned, row_count, vocabulary

import raymerge

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHAT = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vocabularies of 32,000 and 32,007 tokens, and one of 151,665 tokens in 152,064 rows."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "a", bpe(32_000, seed=1), rows=32_000, seed=1)
    write_model(folder / "b", bpe(32_007, seed=2, special=CHAT), rows=32_007, seed=2)
    write_model(folder / "p", bpe(151_665, seed=3, special=CHAT), rows=152_064, seed=3)
    return folder


def recipe(folder: Path, names: str, base: str | None, **tokenizer: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "dtype": "float32",
        **({"base_model": str(folder / base)} if base else {}),
        "models": [
            {"model": str(folder / name), "parameters": {"weight": weight}}
            for name, weight in zip(names, (0.5, 0.3, 0.2), strict=False)
        ],
        **tokenizer,
    }


def embedded(folder: Path, name: str) -> Embedded:
    """Rows of the embedding and of the head, side by side."""
    tokens = token_ids(json.loads((folder / name / "tokenizer.json").read_text()))
    return Embedded(tokens=tokens, rows=both(folder / name))


def both(folder: Path) -> np.ndarray:
    return np.hstack([rows_of(folder, EMBEDDING), rows_of(folder, HEAD)])


def merged(parts: list[np.ndarray]) -> np.ndarray:
    weights = (0.5, 0.3, 0.2)[: len(parts)]
    return sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)


def assert_rows(out: Path, exact: np.ndarray) -> None:
    found = both(out)
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= 1e-6 * np.abs(exact).max()


CASES = {
    "union of two": ("ab", "a", UNION),
    "union without a base": ("ba", None, UNION),
    "the base": ("ab", "b", "base"),
    "a padded base": ("ap", "p", "base"),
    "a padded model": ("ap", "a", "p"),
    "union with a padded base": ("ap", "p", UNION),
    "a small model of three": ("apb", "b", "a"),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_oracle(case: str, models: Path, tmp_path: Path) -> None:
    names, base, source = CASES[case]
    setting = {"tokenizer_source": str(models / source) if source in names else source}
    raymerge.merge(recipe(models, names, base, **setting), tmp_path / "out", executor="inline")
    at = names.index(base) if base else None
    kind: str | int = UNION if source == UNION else names.index(base if source == "base" and base else source)
    members = [embedded(models, name) for name in names]
    assert_rows(tmp_path / "out", merged(aligned(members, at, kind)))
    ids = vocabulary(members, at, kind)
    rows = row_count(members, at, kind)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert token_ids(tokenizer) == ids
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows
    plain = {name for name in read_tensors(tmp_path / "out") if name not in (EMBEDDING, HEAD)}
    assert len(plain) == 10
