"""Where a command prints, and how much."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from raymerge.cli.screens.problems import headline, problem_list
from raymerge.errors import Problem, RaymergeError

# Wide enough for tensor names and figures side by side; logs and pipes have no width of their own.
_PIPE_COLUMNS = 100
INTERRUPTED = 130  # 128 + SIGINT, what shells report


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """Results go to `out`; progress, notes and errors to `err`, so that a pipe carries results alone.

    With `json` every line on stdout is one JSON value, errors included, and nothing else is printed.
    """

    out: Console
    err: Console
    json: bool = False
    quiet: bool = False
    verbosity: int = 0

    def result(self, renderable: RenderableType) -> None:
        self.out.print(renderable)

    def json_line(self, value: Mapping[str, Any]) -> None:
        self.out.file.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
        self.out.file.flush()

    def note(self, text: str, *, level: str = "note") -> None:
        """Something to read beside the result; --quiet leaves out all but warnings."""
        if self.json:
            self.json_line({"event": "message", "level": "info" if level == "note" else level, "text": text})
        elif not self.quiet or level == "warning":
            self.err.print(Text.assemble((f"{level}: ", "yellow" if level == "warning" else "dim"), text))


def open_terminal(*, json: bool = False, quiet: bool = False, verbosity: int = 0) -> Terminal:
    if verbosity:
        logging.basicConfig(level=logging.DEBUG if verbosity > 1 else logging.INFO, stream=sys.stderr)
    return Terminal(
        out=_console(sys.stdout.isatty()),
        err=_console(sys.stderr.isatty(), stderr=True),
        json=json,
        quiet=quiet,
        verbosity=verbosity,
    )


def _console(is_terminal: bool, *, stderr: bool = False) -> Console:
    width = None if is_terminal or "COLUMNS" in os.environ else _PIPE_COLUMNS
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


@contextmanager
def failures_reported(
    terminal: Terminal, name: str, *, has_started: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Print what goes wrong inside, and end the command with its exit code.

    `name` is what the command works on; `has_started` says whether shards were being written.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        _report_interrupt(terminal, has_started())
        raise typer.Exit(INTERRUPTED) from None
    except RaymergeError as error:
        _report(terminal, error, headline(error, name, started=has_started()))
        raise typer.Exit(error.exit_code) from None
    except Exception as error:  # noqa: BLE001 - the last resort: people get a sentence, -v the traceback
        found = f"{type(error).__name__}: {error}"
        wrapped = RaymergeError(Problem(message=found, remedy="run again with -v for the traceback, and report it"))
        _report(terminal, wrapped, f"{name} failed: an error that raymerge did not expect")
        raise typer.Exit(wrapped.exit_code) from None


def _report(terminal: Terminal, error: RaymergeError, title: str) -> None:
    """Print `error`; called while an exception is handled, whose traceback -v shows."""
    if terminal.json:
        terminal.json_line(
            {"event": "error", "exit_code": error.exit_code, "message": title, "problems": problem_values(error)}
        )
    else:
        terminal.err.print(Text.assemble(("error: ", "bold red"), title))
        terminal.err.print(problem_list(error.problems))
    if terminal.verbosity:
        terminal.err.print_exception(show_locals=False)


def problem_values(error: RaymergeError) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in error.problems]


def _report_interrupt(terminal: Terminal, started: bool) -> None:
    text = "stopped; finished shards stay, the same command resumes" if started else "stopped, nothing written"
    if terminal.json:
        terminal.json_line({"event": "interrupted", "exit_code": INTERRUPTED, "message": text})
    else:
        terminal.err.print(Text(text, style="yellow"))
