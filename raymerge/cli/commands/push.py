"""raymerge push"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from raymerge.cli import options
from raymerge.cli.screens.text import grid, plural
from raymerge.cli.terminal import Terminal, failures_reported, open_terminal
from raymerge.events import Event, Message
from raymerge.output.push import PushResult, check_repo
from raymerge.output.push import push as publish
from raymerge.sizes import format_size
from raymerge.storage import normalize_url

Folder = Annotated[str, typer.Argument(metavar="OUT", help="The folder or URL of a finished merge.")]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="The model on the hub: user/name.")]
Private = Annotated[
    bool, typer.Option("--private/--public", help="Who may see the model. It is made if there is none.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another merge, or other weights, in REPO.")]


def push(
    *,
    out: Folder,
    repo: Repo,
    private: Private = True,
    overwrite: Overwrite = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Publish a finished merge on the hub in one commit. The same command continues a push that was cut short."""
    terminal = open_terminal(json=json, quiet=quiet, verbosity=verbose)
    name = options.read_out(out)
    with failures_reported(terminal, out):
        result = publish(
            normalize_url(name),
            check_repo(repo),
            private=private,
            overwrite=overwrite,
            progress_bars=terminal.err.is_terminal and not (quiet or json),
            on_event=lambda event: _show(terminal, event),
        )
        if json:
            terminal.json_line({"event": "pushed", **asdict(result)})
        elif not quiet:
            _report(terminal, result)


def _show(terminal: Terminal, event: Event) -> None:
    if isinstance(event, Message):
        terminal.note(event.text, level="warning" if event.level == "warning" else "note")


def _report(terminal: Terminal, result: PushResult) -> None:
    parts = [format_size(result.nbytes), plural(result.shard_count, "shard")]
    if result.kept_count:
        parts.append(f"{result.kept_count} there already")
    parts.append("private" if result.is_private else "public")
    table = grid({"no_wrap": True, "style": "bold green"}, {"overflow": "fold"})
    table.add_row("pushed", Text(f"{result.url}  {', '.join(parts)}, commit {result.commit[:8]}"))
    terminal.result(table)
