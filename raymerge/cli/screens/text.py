"""Small pieces that several screens share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def grid(*columns: Mapping[str, Any]) -> Table:
    """A borderless table, two spaces between columns; each argument holds one column's options."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for options in columns:
        table.add_column(**options)
    return table


def plural(count: int, noun: str) -> str:
    """As in "1 shard", "8 shards", "1,024 shards"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """As in "4.2 s", "38 s", "3m54s", "2h05m"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def element_count(count: int) -> str:
    """A number of parameters: "7.24 B", "110 M", "4,096"."""
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if count >= size:
            value = count / size
            return f"{value:.0f} {letter}" if value >= 100 else f"{value:.3g} {letter}"
    return f"{count:,}"


def value(setting: object) -> str:
    """A parameter's value as a recipe writes it."""
    if setting is None:
        return "-"
    if isinstance(setting, bool):
        return "true" if setting else "false"
    if isinstance(setting, float):
        return f"{setting:.4g}"
    return str(setting)
