"""Shards that are nothing but byte ranges of their inputs: the store copies them, and no worker is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from raymerge.merging.nouns import ShardOptions
from raymerge.merging.receipts import receipt, with_checksum
from raymerge.planning.copies import copy_ranges
from raymerge.planning.header import shard_header
from raymerge.planning.nouns import ShardReceipt, ShardTask
from raymerge.storage import join_url, store_for


def copy_shard(task: ShardTask, options: ShardOptions, raise_if_stopped: Callable[[], None]) -> ShardReceipt:
    """Make an output file whose jobs are all copies. Many may run at once in one process: they wait for the store.

    A store that does not tell the checksums of what it copies leaves none of the whole: then that is read back once,
    for the manifest would otherwise say less than that of the same bytes written in another way.
    """
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
    done = receipt(task, with_checksum(written), {}, started)
    return done if written.crc32 is not None else replace(done, read_back_bytes=written.nbytes)
