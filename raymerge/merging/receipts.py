"""What a shard task reports, and the checksum of a file that nobody summed while it was written."""

from __future__ import annotations

import time
from dataclasses import replace

from raymerge.errors import ExecutionError
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.peak import peak_bytes
from raymerge.planning.nouns import ShardReceipt, ShardTask
from raymerge.storage import ObjectInfo, join_url, store_for
from raymerge.storage.crc32 import crc32

_CHUNK_BYTES = 16 << 20


def receipt(task: ShardTask, written: ObjectInfo, nonfinite: dict[str, int], started: float) -> ShardReceipt:
    """The receipt of a file that was begun at `started` (monotonic seconds)."""
    if written.crc32 is None:
        raise ExecutionError(f"{task.file_name}: the store gave no checksum of what was written")
    return ShardReceipt(
        file_name=task.file_name,
        nbytes=written.nbytes,
        crc32=written.crc32,
        read_bytes=task.read_bytes,
        nonfinite=tuple(nonfinite.items()),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(),
    )


def checksum_shard(task: ShardTask, options: ShardOptions) -> ShardReceipt:
    """Read a finished output file for its checksum: what an interrupted run did not live to note."""
    started = time.monotonic()
    url = join_url(options.out, task.file_name)
    return receipt(task, with_checksum(store_for(url).info(url)), {}, started)


def with_checksum(found: ObjectInfo) -> ObjectInfo:
    """Read an object once for its CRC32, where the store does not tell it."""
    if found.crc32 is not None:
        return found
    checksum, buffer = 0, bytearray(min(_CHUNK_BYTES, found.nbytes))
    store = store_for(found.url)
    for offset in range(0, found.nbytes, _CHUNK_BYTES):
        view = memoryview(buffer)[: min(_CHUNK_BYTES, found.nbytes - offset)]
        store.read_into(found.url, view, offset=offset, version=found.version)
        checksum = crc32(view, checksum)
    return replace(found, crc32=checksum)
