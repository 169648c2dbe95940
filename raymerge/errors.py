"""Every error raymerge raises on purpose, each with the exit code the command line gives it.

An error is a list of problems; a problem says subject, what was found, what was expected, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    `subject` names the key, tensor, file or model; `message` says what was found and what was expected; `remedy` says
    what to do; `line` is the 1-based line of the recipe, where one is to blame.
    """

    message: str
    subject: str = ""
    remedy: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else ""
        subject = f"{self.subject}: " if self.subject else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{subject}{self.message}{remedy}"


class RaymergeError(Exception):
    """Base of every error raised on purpose. `exit_code` is 1 (the run failed) or 2 (usage, recipe or plan)."""

    exit_code = 1

    def __init__(self, *problems: Problem | str) -> None:
        self.problems: tuple[Problem, ...] = tuple(
            problem if isinstance(problem, Problem) else Problem(message=problem) for problem in problems
        )
        super().__init__(*self.problems)  # args must rebuild the error when Ray pickles it

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    @classmethod
    def collect(cls, problems: Iterable[Problem]) -> RaymergeError:
        return cls(*problems)


class UsageError(RaymergeError):
    """An option or argument that cannot be used."""

    exit_code = 2


class RecipeError(RaymergeError):
    """The recipe does not say something that can be planned."""

    exit_code = 2


class PlanError(RaymergeError):
    """The recipe and its inputs do not fit together, or the output cannot take the result."""

    exit_code = 2


class CheckpointError(RaymergeError):
    """An input is damaged, incomplete or not a checkpoint."""

    exit_code = 2


class StorageError(RaymergeError):
    """A location could not be read or written."""


class NotFoundError(StorageError):
    """The object or folder does not exist."""


class AccessError(StorageError):
    """The object exists, or may exist, but these credentials have no access to it."""


class ChangedError(StorageError):
    """An input is no longer what it was when the merge was planned."""


class TransientStorageError(StorageError):
    """A fault worth another try (timeout, reset, throttling) that outlasted the tries made in place."""


class ExecutionError(RaymergeError):
    """A task failed for good. Finished shards stay; the same command continues."""


class VerifyError(RaymergeError):
    """A finished output does not hold what its manifest says."""
