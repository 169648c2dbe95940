"""A merge method that takes its time, so that hosts can be lost while a small merge runs."""

import os
import time
from pathlib import Path

import raymerge


@raymerge.merge_method(
    "slow_average", summary="the models' mean, late", formula="mean", source="a test",
    parameters=(
        raymerge.Parameter(name="seconds", kind=float, default=0.0, help="rest before each tensor"),
        raymerge.Parameter(name="kills", kind=bool, default=False, help="end the worker at the first try of a shard"),
    ),
)  # fmt: skip
def slow_average(inputs):
    time.sleep(inputs.shared["seconds"])
    if inputs.shared["kills"]:
        die_at_first_try()
    share = 1.0 / inputs.count
    return lambda block: block.operations.weighted_sum([share] * inputs.count, block.x)


def die_at_first_try() -> None:
    """End this worker the first time that its task runs on this host."""
    import ray

    mark = Path("/tmp/ray") / f"tried-{ray.get_runtime_context().get_task_name()}"
    if not mark.exists():
        mark.touch()
        os._exit(1)
