"""What an executor is given and gives back, and how a running function learns that it should stop."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P")
R = TypeVar("R")

# A task that still meets a transient storage fault has already outlasted the tries made in place, so a few more, each
# after a longer rest, are enough to ride out a throttled prefix; beyond that the store is down.
STORAGE_RETRIES = 3
RETRY_WAIT_SECONDS = 5.0
RETRY_WAIT_LIMIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Generic[P]):
    """One unit of work. `memory_bytes` is its projected peak, the worker's baseline included."""

    name: str
    payload: P
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[R]):
    """What the function returned for the task `name`, the node (an IP address, "" in this process) and its seconds."""

    name: str
    result: R
    node: str = ""
    seconds: float = 0.0


class Measured(NamedTuple):
    """What a result says of the work behind it."""

    read_bytes: int = 0
    written_bytes: int = 0
    phase_seconds: tuple[tuple[str, float], ...] = ()


Measure = Callable[[R], Measured]


def measure_nothing(_result: object) -> Measured:
    """A `measure` for results that carry no counts."""
    return Measured()


def jittered_seconds(attempt: int, base_seconds: float) -> float:
    """The rest before try `attempt` + 1: doubled each time, bounded, and spread by half so that tasks do not align."""
    rest = min(base_seconds * float(2 ** (attempt - 1)), RETRY_WAIT_LIMIT_SECONDS)
    return rest * random.uniform(0.5, 1.5)


class StoppedError(Exception):
    """Raised by a function that gives up because `stop_requested()`; executors never report it as a failure."""


_stop_check: ContextVar[Callable[[], bool] | None] = ContextVar("stop_check", default=None)


def stop_requested() -> bool:
    """Whether the executor wants the running function to end early; False outside an executor.

    Ask in the thread that the function was called in, between units of work, and raise `StoppedError`.
    """
    check = _stop_check.get()
    return check is not None and check()


@contextmanager
def stoppable_by(check: Callable[[], bool]) -> Iterator[None]:
    """Let `stop_requested()` answer `check()` in this thread."""
    token = _stop_check.set(check)
    try:
        yield
    finally:
        _stop_check.reset(token)
