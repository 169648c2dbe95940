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
    """Those with a line of the recipe first, from its top down."""
    problems = sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))
    places = any(problem.line is not None for problem in problems)
    short = [len(problem.subject) for problem in problems if len(problem.subject) <= _SUBJECT_WIDTH]
    blocks = [_block(problem, places=places, subject_width=max(short, default=0)) for problem in problems]
    return Padding(Group(*blocks), (0, 0, 0, 2))


def _block(problem: Problem, *, places: bool, subject_width: int) -> RenderableType:
    message = Text(problem.message)
    if problem.remedy:
        message.append(f"\n-> {problem.remedy}", style="cyan")
    place = [f"line {problem.line}" if problem.line is not None else ""] if places else []
    if len(problem.subject) > _SUBJECT_WIDTH:
        first = Text(f"{place[0]:<8}  " if place else "", style="dim")
        return Group(first.append(problem.subject, style="not dim bold"), Padding(message, (0, 0, 0, 4)))
    subject = [Text(problem.subject, style="bold")] if subject_width else []
    table = grid(
        *({"min_width": 8, "no_wrap": True, "style": "dim"} for _ in place),
        *({"min_width": subject_width, "no_wrap": True} for _ in subject),
        {"overflow": "fold"},
    )
    table.add_row(*place, *subject, message)
    return table


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
