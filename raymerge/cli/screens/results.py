"""The end of a merge: what was made, what to do next, how to load it."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from raymerge.cli.screens.text import duration, grid, plural
from raymerge.sizes import format_size


def merge_done(
    *, out: str, nbytes: int, shard_count: int, kept_count: int, retries: int, seconds: float
) -> RenderableType:
    parts = [format_size(nbytes), plural(shard_count, "shard"), duration(seconds)]
    if kept_count:
        parts.append(f"{kept_count} kept from an earlier run")
    if retries:
        parts.append("1 retry" if retries == 1 else f"{retries} retries")
    table = grid({"no_wrap": True, "style": "bold green"}, {"overflow": "fold"})
    table.add_row("done", Text(f"{out}  {', '.join(parts)}"))
    table.add_row("next", Text(f"raymerge verify {quoted(out)}"))
    if "://" not in out:
        table.add_row("load", Text(f'AutoModelForCausalLM.from_pretrained("{out}")'))
    return table


def quoted(argument: str) -> str:
    """`argument` as a shell takes it, in single quotes where it must be."""
    plain = all(letter.isalnum() or letter in "-_./:@%+=,~" for letter in argument)
    return argument if plain and argument else "'" + argument.replace("'", "'\\''") + "'"
