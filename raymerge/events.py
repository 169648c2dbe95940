"""What happens during a run, as data: executors and the pipeline emit it, a display or a log shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RetryCause = Literal["node lost", "worker died", "out of memory", "storage", "ray", "set-up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """Work begins. `kept` shards were finished by an earlier run.

    Byte counts are of the shards still to do, and of the first phase that they need, if any.
    """

    plan_digest: str
    out: str
    shard_count: int
    kept_count: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted:
    """A task was handed to a worker. `node` is "" while it is not known."""

    task: str
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFinished:
    """A task is done for good. `phase_seconds` are of all its threads together, by what they did."""

    task: str
    read_bytes: int
    written_bytes: int
    seconds: float
    node: str = ""
    phase_seconds: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSurveyed:
    """A task of a first phase is done: it has read tensors, and written nothing."""

    task: str
    read_bytes: int
    seconds: float
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRetried:
    """An attempt failed and another follows. `attempt` counts from 1; `limit` is None where attempts are unlimited."""

    task: str
    cause: RetryCause
    detail: str
    attempt: int
    limit: int | None
    wait_seconds: float
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something a user should read that is not an error."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The output is complete."""

    out: str
    nbytes: int
    shard_count: int
    kept_count: int
    seconds: float
    retries: int


Event = RunStarted | TaskStarted | TaskFinished | TaskSurveyed | TaskRetried | Message | RunFinished
