"""The commands, each with an example at the end of its help."""

from __future__ import annotations

from typing import Annotated

import typer

from raymerge.cli.commands.merge import merge
from raymerge.cli.commands.methods import methods
from raymerge.cli.commands.plan import plan
from raymerge.cli.commands.push import push
from raymerge.cli.commands.status import status
from raymerge.cli.commands.submit import submit
from raymerge.cli.commands.verify import verify

app = typer.Typer(
    name="raymerge",
    help="Merge large language models from a recipe, resumably, on one machine or a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _example(*commands: str) -> str:
    return "Example:\n\n" + "\n\n".join(f"  [bold]{command}[/]" for command in commands)


app.command(epilog=_example("raymerge merge config.yaml merged --out-shard-size 1B"))(merge)
app.command(epilog=_example("raymerge plan config.yaml merged"))(plan)
app.command(epilog=_example("raymerge methods ties --example > config.yaml"))(methods)
app.command(epilog=_example("raymerge verify merged"))(verify)
app.command(epilog=_example("raymerge status s3://bucket/merged"))(status)
app.command(epilog=_example("raymerge push merged user/name --private"))(push)
app.command(epilog=_example("raymerge submit config.yaml s3://bucket/merged --address http://HEAD:8265"))(submit)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"raymerge {version('raymerge')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
