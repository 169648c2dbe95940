"""A merge method that takes its time, so that hosts can be lost while a small merge runs.

On a host with MARKS in its environment, a folder, the first attempt at every shard ends its worker.
"""

import os
import time
from pathlib import Path

import raymerge
from raymerge.merging import shard


@raymerge.merge_method(
    "slow_average", summary="the models' mean, late", formula="mean", source="a test",
    parameters=(raymerge.Parameter(name="seconds", kind=float, default=0.0, help="rest before each tensor"),),
)  # fmt: skip
def slow_average(inputs):
    time.sleep(inputs.shared["seconds"])
    share = 1.0 / inputs.count
    return lambda block: block.operations.weighted_sum([share] * inputs.count, block.x)


def dying_once(run_shard, marks):
    def run(task, *arguments):
        mark = marks / task.file_name
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return run_shard(task, *arguments)

    return run


if "MARKS" in os.environ:
    shard.run_shard = dying_once(shard.run_shard, Path(os.environ["MARKS"]))
