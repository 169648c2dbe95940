"""A run's progress as Ray metrics, which Ray's agents hand to Prometheus; without the dashboard they lead nowhere.

No metric is tagged by task or tensor: a series for each would outlive the run in every store of metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from ray.util.metrics import Counter

from raymerge.events import Event, TaskFinished, TaskRetried, TaskStarted

READ_BYTES = "raymerge_read_bytes"
WRITTEN_BYTES = "raymerge_written_bytes"
SHARDS_DONE = "raymerge_shards_done"
RETRIES = "raymerge_retries"
TASK_SECONDS = "raymerge_task_seconds"

# Name -> what it counts, and its tags. Prometheus sees `ray_NAME_total`.
METRICS = MappingProxyType(
    {
        READ_BYTES: ("Bytes of inputs read by finished tasks.", ()),
        WRITTEN_BYTES: ("Bytes of output written by finished tasks.", ()),
        SHARDS_DONE: ("Tasks that finished.", ()),
        RETRIES: ("Attempts that failed and were followed by another.", ("cause",)),
        TASK_SECONDS: (
            "Seconds of tasks: wait (for a place), run, and of its threads read, compute, write.",
            ("phase",),
        ),
    }
)


def counted(
    on_event: Callable[[Event], None], *, clock: Callable[[], float] = time.monotonic
) -> Callable[[Event], None]:
    """`on_event`, with every event counted before it is passed on."""
    tally = _Tally(clock=clock, began_at=clock())

    def listen(event: Event) -> None:
        tally.count(event)
        on_event(event)

    return listen


@dataclass(slots=True, kw_only=True)
class _Tally:
    """`ready_at` is since when a task could have run: since the run began, or since its last retry was due."""

    clock: Callable[[], float]
    began_at: float
    ready_at: dict[str, float] = field(default_factory=dict)

    def count(self, event: Event) -> None:
        if isinstance(event, TaskStarted):
            _add(TASK_SECONDS, self.clock() - self.ready_at.get(event.task, self.began_at), phase="wait")
        elif isinstance(event, TaskFinished):
            _add(READ_BYTES, event.read_bytes)
            _add(WRITTEN_BYTES, event.written_bytes)
            _add(SHARDS_DONE, 1)
            _add(TASK_SECONDS, event.seconds, phase="run")
            for phase, seconds in event.phase_seconds:
                _add(TASK_SECONDS, seconds, phase=phase)
        elif isinstance(event, TaskRetried):
            self.ready_at[event.task] = self.clock() + event.wait_seconds
            _add(RETRIES, 1, cause=event.cause)


def _add(name: str, value: float, **tags: str) -> None:
    if value > 0:  # a counter refuses to stand still
        _counter(name).inc(value, tags)


@cache
def _counter(name: str) -> Counter:
    """One for each name and process: a second of the same name would count beside the first."""
    description, tag_keys = METRICS[name]
    return Counter(name, description, tag_keys=tag_keys)
