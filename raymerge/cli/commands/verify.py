"""raymerge verify"""

from __future__ import annotations

from typing import Annotated

import typer

from raymerge.cli import options
from raymerge.cli.screens.reports import verify_screen, verify_values
from raymerge.cli.terminal import failures_reported, open_terminal
from raymerge.output.verify import verify as check
from raymerge.storage import normalize_url

Folder = Annotated[
    str, typer.Argument(metavar="OUT", help="The folder or URL of a merge, or of any safetensors model.")
]
Full = Annotated[bool, typer.Option("--full", help="Read every byte of a remote OUT too, as for a local one.")]

Load = Annotated[
    bool,
    typer.Option("--load", help="Let transformers build the model, without its bytes, and compare names and shapes."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="With --load, run the code that OUT brings along (auto_map of its config.json). Without it, such code is "
        "never run.",
    ),
]


def verify(
    *,
    out: Folder,
    full: Full = False,
    load: Load = False,
    trust_remote_code: Trust = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Check an output: index, headers, sizes, checksums, finite values. Exits 1 if anything is wrong."""
    terminal = open_terminal(json=json, quiet=quiet, verbosity=verbose)
    with failures_reported(terminal, out):
        report = check(normalize_url(options.read_out(out)), full=full, load=load, trust_remote_code=trust_remote_code)
        if json:
            terminal.json_line(verify_values(report))
        elif not (quiet and report.ok):
            terminal.result(verify_screen(report))
        raise typer.Exit(0 if report.ok else 1)
