"""Following a job to its end, whatever happens to the connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from raymerge.errors import ExecutionError, Problem

# Between looks at a job whose log stream has ended; a stream that is silent is looked past as often.
LOOK_SECONDS = 2.0
# How long the cluster may be unreachable before following ends. A head's restart or a laptop's change of networks takes
# less; the job goes on in any case.
PATIENCE_SECONDS = 300.0
_STOPPED_EXIT_CODE = 130  # what shells report for an interrupted command
_SIGNAL_BASE = 128  # as above: 128 + the signal's number


class Status(str, Enum):
    """How far a job is."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """`exit_code` is the driver's, negative for a signal, None where it is not known; `attempt` names the log's run."""

    status: Status
    message: str = ""
    exit_code: int | None = None
    attempt: str = ""

    @property
    def is_terminal(self) -> bool:
        return self.status in (Status.STOPPED, Status.SUCCEEDED, Status.FAILED)


class UnreachableError(Exception):
    """The server did not answer, or answered with an error of its own: worth another try."""


class JobServer(Protocol):
    """What runs jobs, somewhere."""

    def state(self, job_id: str) -> JobState:
        """Raises UnreachableError, or a RaymergeError where trying again is no use."""

    def log(self, job_id: str) -> Generator[str, None, None]:
        """The log from its first character, until the server ends the stream; "" after a silence of some seconds.

        Raises UnreachableError when the connection breaks.
        """


def follow(
    server: JobServer,
    job_id: str,
    *,
    show: Callable[[str], None],
    note: Callable[[str], None],
    patience_seconds: float = PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> JobState:
    """Show each character of the job's log once, and return the job's state when it has ended.

    A log stream that ends while the job runs is opened again, and what was shown is skipped. Raises ExecutionError when
    the server stays unreachable for `patience_seconds`; the job is left alone.
    """
    follower = _Follower(server, job_id, show, note, patience_seconds, sleep)
    while True:
        before = follower.state()
        follower.read_log(before)
        if before.is_terminal:
            return before
        if not follower.state().is_terminal:
            sleep(LOOK_SECONDS)


@dataclass(slots=True)
class _Follower:
    server: JobServer
    job_id: str
    show: Callable[[str], None]
    note: Callable[[str], None]
    patience_seconds: float
    sleep: Callable[[float], None]
    shown: int = 0
    attempt: str = ""

    def state(self) -> JobState:
        """The state, however often one has to ask."""
        waited = 0.0
        while True:
            try:
                return self.server.state(self.job_id)
            except UnreachableError as error:
                if waited == 0.0:
                    self.note(f"the cluster does not answer ({error}); trying for {self.patience_seconds:.0f} s")
                if waited >= self.patience_seconds:
                    raise _lost_error(self.job_id, str(error), waited) from error
            self.sleep(LOOK_SECONDS)
            waited += LOOK_SECONDS

    def read_log(self, state: JobState) -> None:
        """Show what is new, until the stream ends or breaks; of a job that has ended, until it falls silent."""
        if state.attempt != self.attempt:
            self.attempt, self.shown = state.attempt, 0
        seen = 0
        try:
            with closing(self.server.log(self.job_id)) as texts:
                for text in texts:
                    if not text and (state.is_terminal or self._has_moved(state)):
                        return
                    fresh = text[max(0, self.shown - seen) :]
                    seen += len(text)
                    self.shown = max(self.shown, seen)
                    if fresh:
                        self.show(fresh)
        except UnreachableError as error:
            # The next look at the job decides what that means; only of one that has ended is part of the log missed.
            if state.is_terminal:
                self.note(f"the end of the log could not be read ({error})")

    def _has_moved(self, state: JobState) -> bool:
        """Whether a silent stream is of a job that has ended, or of an attempt that is over."""
        now = self.state()
        return now.is_terminal or now.attempt != state.attempt


def exit_code(state: JobState) -> int:
    """The code to end with: the job's own."""
    if state.status is Status.SUCCEEDED:
        return 0
    if state.exit_code:
        return state.exit_code if state.exit_code > 0 else _SIGNAL_BASE - state.exit_code
    return _STOPPED_EXIT_CODE if state.status is Status.STOPPED else 1


def _lost_error(job_id: str, reason: str, waited: float) -> ExecutionError:
    return ExecutionError(
        Problem(
            subject=f"job {job_id}",
            message=f"its cluster has not answered for {waited:.0f} s ({reason})",
            remedy="attach again once it does; if the cluster is gone, submit the same merge to another: it continues",
        )
    )
