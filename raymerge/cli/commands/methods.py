"""raymerge methods"""

from __future__ import annotations

from typing import Annotated

import typer

from raymerge.cli import options
from raymerge.cli.screens.methods import example_recipe, method_page, method_table
from raymerge.cli.terminal import failures_reported, open_terminal
from raymerge.errors import UsageError
from raymerge.methods import all_methods, load_methods, method

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, in full.", show_default=False)]
Example = Annotated[bool, typer.Option("--example", help="Print a recipe that runs, with public models.")]


def methods(
    *, name: Name = None, example: Example = False, methods: options.Methods = None, verbose: options.Verbose = 0
) -> None:
    """List the merge methods, or show one with its parameters, formula and source."""
    terminal = open_terminal(verbosity=verbose)
    with failures_reported(terminal, "raymerge methods"):
        load_methods(options.read_paths(methods))
        if name is None:
            if example:
                raise UsageError("--example needs the name of a method")
            terminal.result(method_table(all_methods().values()))
        elif example:
            typer.echo(example_recipe(method(name)), nl=False)
        else:
            terminal.result(method_page(method(name)))
