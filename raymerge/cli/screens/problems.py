"""Errors: one headline, then a block for each problem with its place, subject, finding and remedy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from raymerge.cli.screens.text import grid, plural
from raymerge.errors import Problem, RaymergeError

# A subject longer than this (a tensor's name, a URL) stands on a line of its own, so that messages keep their width.
_SUBJECT_WIDTH = 30


def headline(error: RaymergeError, name: str, *, started: bool) -> str:
    """What failed and what that leaves behind. `started` says that shards were being written."""
    count = plural(len(error.problems), "problem")
    if started:
        return f"{name} failed: {count}; finished shards stay, the same command continues"
    if error.exit_code == 2:
        return f"{name} cannot run: {count}, no weights read, nothing written"
    return f"{name} failed: {count}, nothing written"


def problem_list(problems: Sequence[Problem]) -> RenderableType:
    places = any(problem.line is not None for problem in problems)
    blocks = [_block(problem, places=places) for problem in problems]
    return Padding(Group(*blocks), (0, 0, 0, 2))


def _block(problem: Problem, *, places: bool) -> RenderableType:
    message = Text(problem.message)
    if problem.remedy:
        message.append(f"\n-> {problem.remedy}", style="cyan")
    place = f"line {problem.line}" if problem.line is not None else ""
    table = grid(
        {"min_width": 8 if places else 0, "no_wrap": True, "style": "dim"},
        {"min_width": 0, "max_width": _SUBJECT_WIDTH, "no_wrap": True},
        {"overflow": "fold"},
    )
    if len(problem.subject) <= _SUBJECT_WIDTH:
        table.add_row(place, Text(problem.subject, style="bold"), message)
        return table
    first = Text(f"{place:<8}  " if places else "", style="dim")
    return Group(first.append(problem.subject, style="not dim bold"), Padding(message, (0, 0, 0, 4)))


def warning_list(problems: Sequence[Problem]) -> RenderableType:
    """Warnings of a plan: what was found, and what could be set instead."""
    table = grid({"style": "yellow", "no_wrap": True}, {"overflow": "fold"})
    for problem in problems:
        place = f"line {problem.line}: " if problem.line is not None else ""
        subject = f"{problem.subject}: " if problem.subject else ""
        text = Text(f"{place}{subject}{problem.message}")
        if problem.remedy:
            text.append(f"\n-> {problem.remedy}", style="cyan")
        table.add_row("warning", text)
    return table
