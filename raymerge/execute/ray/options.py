"""How tasks are run on Ray, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymerge.execute.ray.pace import STRAGGLER_SECONDS
from raymerge.execute.task import RETRY_WAIT_SECONDS, Measure, measure_nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """What each task asks of a node, and how patient the driver is.

    `measure` tells the bytes read and written from a result. `max_tasks` bounds the tasks in flight; None leaves it to
    the cluster's size. `unschedulable_seconds` is how long a request that no living node could hold waits for one.
    `settle_seconds` passes before a dead worker is blamed on the task: a node that shuts down ends its workers first
    and is seen to drain or vanish a moment later (up to 15 seconds without notice). Both can be 0 on a private Ray.
    Tasks prefer nodes with the labels of `prefer_labels`, and run on others while those are busy or absent. A task that
    runs for `straggler_seconds` and much longer than others gets a second attempt once nothing else is left to start.
    `runtime_env` is Ray's, for tasks alone; empty leaves it to the job.
    """

    task_cpus: float = 1
    task_gpus: float = 0
    max_tasks: int | None = None
    measure: Measure[Any] = measure_nothing
    retry_wait_seconds: float = RETRY_WAIT_SECONDS
    settle_seconds: float = 20.0
    unschedulable_seconds: float = 45.0
    straggler_seconds: float = STRAGGLER_SECONDS
    prefer_labels: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
