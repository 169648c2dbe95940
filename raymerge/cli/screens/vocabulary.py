"""What becomes of each model's rows where vocabularies are aligned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from raymerge.cli.screens.text import grid, plural
from raymerge.planning.nouns import AlignedRows, AlignedVocabulary


def vocabulary_table(vocabulary: AlignedVocabulary, names: Mapping[str, str]) -> RenderableType:
    """The size of the output's vocabulary, then a line for each model; `names` are short ones."""
    title = Text("vocabulary  ", style="dim")
    title.append(f"{plural(vocabulary.token_count, 'token')} in {plural(vocabulary.row_count, 'row')}", style="default")
    title.append(f", from {vocabulary.source}", style="default")
    table = grid({"no_wrap": True}, {"justify": "right", "no_wrap": True}, {"overflow": "fold"})
    for rows in vocabulary.rows:
        table.add_row(f"  {names.get(rows.model, rows.model)}", f"{rows.matched:,} matched", Text(_rest(rows)))
    return Group(title, table)


def _rest(rows: AlignedRows) -> str:
    parts = [f"{count:,} filled from {source}" for source, count in rows.filled]
    parts += [f"{rows.dropped:,} dropped"] if rows.dropped else []
    parts += [f"{plural(rows.padding, 'row')} of padding kept"] if rows.padding else []
    return ", ".join(parts)


def vocabulary_values(vocabulary: AlignedVocabulary | None) -> dict[str, Any] | None:
    """As JSON values."""
    if vocabulary is None:
        return None
    return {
        "source": vocabulary.source,
        "token_count": vocabulary.token_count,
        "row_count": vocabulary.row_count,
        "models": [{**asdict(rows), "filled": dict(rows.filled)} for rows in vocabulary.rows],
    }
