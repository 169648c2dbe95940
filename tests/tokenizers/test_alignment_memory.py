"""Gathering rows stays within the projected memory, whether tensors are held or streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_memory import check_peak
from vocabularies import words, write_model


def recipe(folder: Path, name: str) -> dict[str, Any]:
    models = [{"model": f"{folder}/{name}-{each}", "parameters": {"weight": 1}} for each in "abc"]
    return {"merge_method": "linear", "models": models, "tokenizer_source": "union"}


@pytest.mark.parametrize("budget_mib", [768, 160])
def test_the_peak_stays_below_the_projection(budget_mib: int, tmp_path: Path) -> None:
    """Three vocabularies in orders of their own, with tokens that two models have and the first lacks."""
    for name, count, hidden in (("small", 300, 32), ("large", 40_000, 512)):
        for at, model in enumerate("abc"):
            tokens = [f"t{(number * (7 + 2 * at)) % count + at * count // 8}" for number in range(count)]
            given = words(list(dict.fromkeys(tokens)))
            rows = len(given["model"]["vocab"])
            write_model(
                tmp_path / f"{name}-{model}", given, rows=rows, seed=at, hidden=hidden, head=False, dtype="bfloat16"
            )
    check_peak(recipe(tmp_path, "small"), recipe(tmp_path, "large"), tmp_path, budget_mib << 20)
