"""What a reading of a recipe finds wrong, gathered while the reading goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raymerge.errors import Problem
from raymerge.recipe.document import Node, paths

MAX_PROBLEMS = 100  # more say no more; each costs a search for the nearest word


class TooManyProblemsError(Exception):
    """The text is hardly a recipe: reading it further is of no use."""


@dataclass(slots=True, kw_only=True)
class Report:
    """Problems and warnings so far, and the line of every key path."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)

    def problem(self, node: Node, path: str, message: str, remedy: str = "") -> None:
        """Raises TooManyProblemsError."""
        if len(self.problems) >= MAX_PROBLEMS:
            raise TooManyProblemsError
        self.problems.append(Problem(subject=path, message=message, remedy=remedy, line=node.line))

    def warning(self, node: Node, path: str, message: str, remedy: str = "") -> None:
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(Problem(subject=path, message=message, remedy=remedy, line=node.line))

    def index(self, node: Node, path: str) -> None:
        """Note the lines of `node` and of everything in it."""
        if path:
            self.lines[path] = node.line
        self.lines.update((each, child.line) for each, child in paths(node, path))


def describe(node: Node) -> str:
    """The value as an error names it: `found {describe(node)}`."""
    value = node.value
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, Mapping):
        return f"a mapping with {_shorten(', '.join(value))}" if value else "an empty mapping"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {_shorten(node.text)}"
    return _shorten(repr(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
