"""Shards that are nothing but byte ranges of their inputs: the store copies them, and no worker is needed."""

from __future__ import annotations

import time
from collections.abc import Callable

from raymerge.merging.nouns import ShardOptions
from raymerge.merging.receipts import receipt
from raymerge.planning.copies import copy_ranges
from raymerge.planning.header import shard_header
from raymerge.planning.nouns import ShardReceipt, ShardTask
from raymerge.storage import join_url, store_for


def copy_shard(task: ShardTask, options: ShardOptions, raise_if_stopped: Callable[[], None]) -> ShardReceipt:
    """Make an output file whose jobs are all copies. Many may run at once in one process: they wait for the store."""
    started = time.monotonic()
    header = shard_header(task)
    url = join_url(options.out, task.file_name)
    with store_for(url).create(url, nbytes=len(header) + task.tensor_bytes) as writer:
        writer.write(header)
        for each in copy_ranges(task.jobs):
            raise_if_stopped()
            writer.copy(each)
        writer.settle(raise_if_stopped)
        written = writer.commit()
    return receipt(task, written, {}, started)
