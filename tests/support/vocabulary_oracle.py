"""What aligned embeddings are, written plainly in float64 from the rules that the README states for `tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = np.ndarray  # (rows, columns) of float64
UNION = "union"


@dataclass(frozen=True)
class Embedded:
    """A model as far as its vocabulary goes: ids by token, and one tensor with a row for each id."""

    tokens: Mapping[str, int]
    rows: Rows


@dataclass(frozen=True)
class Rule:
    """`row` is (model, token or row number), or None for zeros."""

    row: tuple[int, str | int] | None
    force: bool = False


def vocabulary(models: Sequence[Embedded], base: int | None, source: str | int) -> dict[str, int]:
    """Ids by token of the output: one model's, or the donor's with what the others have beside it, in file order."""
    if source != UNION:
        return dict(models[int(source)].tokens)
    donor = models[base or 0]
    found = dict(donor.tokens)
    after = max(found.values()) + 1
    for model in models:
        for token in sorted(model.tokens, key=lambda each: model.tokens[each]):
            if token not in found:
                found[token] = after
                after += 1
    return found


def row_count(models: Sequence[Embedded], base: int | None, source: str | int, multiple: int | None = None) -> int:
    count = max(vocabulary(models, base, source).values()) + 1 if source == UNION else len(models[int(source)].rows)
    return count if not multiple else -(-count // multiple) * multiple


def aligned(
    models: Sequence[Embedded],
    base: int | None,
    source: str | int,
    *,
    rules: Mapping[str, Rule] | None = None,
    multiple: int | None = None,
) -> list[Rows]:
    """Every model's rows in the output's order."""
    tokens = vocabulary(models, base, source)
    count = row_count(models, base, source, multiple)
    donor = models[base or 0] if source == UNION else models[int(source)]
    kept = max(donor.tokens.values()) + 1 if source == UNION else len(donor.rows)
    names: dict[int, Any] = {place: token for token, place in tokens.items()}
    used = [set(model.tokens.values()) for model in models]
    result = []
    for model in range(len(models)):
        out = np.zeros((count, models[0].rows.shape[1]))
        for place in range(count):
            if place in names:
                rule = (rules or {}).get(names[place])
                out[place] = _token_row(models, model, base, names[place], rule)
            elif place < kept:
                out[place] = _choose(_paddings(models, place, used), model, base)
        result.append(out)
    return result


def _token_row(models: Sequence[Embedded], own: int, base: int | None, token: str, rule: Rule | None) -> Rows:
    if token in models[own].tokens and (rule is None or not rule.force):
        return models[own].rows[models[own].tokens[token]]
    found = [each.rows[each.tokens[token]] if token in each.tokens else None for each in models]
    if rule is not None and (rule.force or found[own] is None):
        if rule.row is None:
            return np.zeros(models[0].rows.shape[1])
        model, row = rule.row
        return models[model].rows[row if isinstance(row, int) else models[model].tokens[row]]
    return _choose(found, own, base)


def _paddings(models: Sequence[Embedded], place: int, used: Sequence[set[int]]) -> list[Rows | None]:
    """For each model its row of that number, if no token of the model has it."""
    return [
        model.rows[place] if place < len(model.rows) and place not in taken else None
        for model, taken in zip(models, used, strict=True)
    ]


def _choose(found: Sequence[Rows | None], own: int, base: int | None) -> Rows | float:
    if found[own] is not None:
        return found[own]
    if base is not None and found[base] is not None:
        return found[base]
    there = [row for row in found if row is not None]
    return sum(there) / len(there) if there else 0.0
