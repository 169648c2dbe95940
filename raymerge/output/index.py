"""The index of a sharded checkpoint. It appears last: without it, loaders find no model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from raymerge.planning.nouns import ShardTask


def index_json(shards: Sequence[ShardTask]) -> bytes | None:
    """`model.safetensors.index.json`; None for a single `model.safetensors`, which needs none."""
    if len(shards) == 1:
        return None
    jobs = [job for shard in shards for job in shard.jobs]
    index = {
        "metadata": {
            "total_parameters": sum(job.output.element_count for job in jobs),
            "total_size": sum(job.output.nbytes for job in jobs),
        },
        "weight_map": {job.output.name: shard.file_name for shard in shards for job in shard.jobs},
    }
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
