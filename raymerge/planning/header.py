"""The first bytes of an output file, which follow from the plan alone."""

from __future__ import annotations

from raymerge.checkpoint.header import build_header
from raymerge.planning.nouns import ShardTask

PLAN_KEY = "raymerge_plan"


def shard_header(task: ShardTask) -> bytes:
    """Layout, the format that loaders ask for, and the plan's digest: a file that starts so belongs to this plan."""
    return build_header([job.output for job in task.jobs], {"format": "pt", PLAN_KEY: task.plan_digest})


def shard_nbytes(task: ShardTask) -> int:
    """The exact size of the finished file."""
    return len(shard_header(task)) + task.tensor_bytes
