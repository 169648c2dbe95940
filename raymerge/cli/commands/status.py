"""raymerge status"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from raymerge.cli import options
from raymerge.cli.screens.reports import status_screen, status_values
from raymerge.cli.terminal import failures_reported, open_terminal
from raymerge.output.status import status as look
from raymerge.storage import normalize_url
from raymerge.storage.hub_spool import in_progress_at

Folder = Annotated[str, typer.Argument(metavar="OUT", help="The folder or URL of a merge, finished or not.")]


def status(*, out: Folder, json: options.Json = False, verbose: options.Verbose = 0) -> None:
    """Show how far an output is, from the output alone: it works from any machine. Exits 1 if no merge has begun."""
    terminal = open_terminal(json=json, verbosity=verbose)
    with failures_reported(terminal, out):
        report = look(in_progress_at(normalize_url(options.read_out(out))))
        if json:
            terminal.json_line(status_values(report))
        else:
            terminal.result(status_screen(report, now=time.time()))
        raise typer.Exit(0 if report.manifest is not None else 1)
