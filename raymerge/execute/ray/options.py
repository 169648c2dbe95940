"""How tasks are run on Ray, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raymerge.execute.task import RETRY_WAIT_SECONDS, Measure, measure_nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """What each task asks of a node, and how patient the driver is.

    `measure` tells the bytes read and written from a result. `max_tasks` bounds the tasks in flight; None leaves it to
    the cluster's size. `unschedulable_seconds` is how long a request that no living node could hold waits for one.
    `settle_seconds` passes before a dead worker is blamed on the task: a node that shuts down ends its workers first
    and is seen to drain or vanish a moment later (up to 15 seconds without notice). Both can be 0 on a private Ray.
    """

    task_cpus: float = 1
    task_gpus: float = 0
    max_tasks: int | None = None
    measure: Measure[Any] = measure_nothing
    retry_wait_seconds: float = RETRY_WAIT_SECONDS
    settle_seconds: float = 20.0
    unschedulable_seconds: float = 45.0
