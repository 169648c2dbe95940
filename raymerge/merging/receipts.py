"""What a shard task reports, and the checksum of a file that nobody summed while it was written."""

from __future__ import annotations

import time
import zlib

from raymerge.merging.nouns import ShardOptions
from raymerge.merging.peak import peak_bytes
from raymerge.planning.nouns import ShardReceipt, ShardTask
from raymerge.storage import ObjectInfo, join_url, store_for

_CHUNK_BYTES = 16 << 20


def receipt(task: ShardTask, written: ObjectInfo, nonfinite: dict[str, int], started: float) -> ShardReceipt:
    """The receipt of a file that was written since `started` (monotonic seconds).

    A store that copies ranges without telling their checksum leaves none of the whole: then the file is read back once.
    """
    crc32 = written.crc32 if written.crc32 is not None else _read_crc32(written)
    return ShardReceipt(
        file_name=task.file_name,
        nbytes=written.nbytes,
        crc32=crc32,
        read_bytes=task.read_bytes,
        read_back_bytes=written.nbytes if written.crc32 is None else 0,
        nonfinite=tuple(nonfinite.items()),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(),
    )


def checksum_shard(task: ShardTask, options: ShardOptions) -> ShardReceipt:
    """Read a finished output file for its checksum: what an interrupted run did not live to note."""
    started = time.monotonic()
    url = join_url(options.out, task.file_name)
    return receipt(task, store_for(url).info(url), {}, started)


def _read_crc32(found: ObjectInfo) -> int:
    crc32, buffer = 0, bytearray(min(_CHUNK_BYTES, found.nbytes))
    store = store_for(found.url)
    for offset in range(0, found.nbytes, _CHUNK_BYTES):
        view = memoryview(buffer)[: min(_CHUNK_BYTES, found.nbytes - offset)]
        store.read_into(found.url, view, offset=offset, version=found.version)
        crc32 = zlib.crc32(view, crc32)
    return crc32
