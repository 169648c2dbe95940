"""What a shard task reports, and the checksum of a file that nobody summed while it was written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace

from raymerge.compute.finite import nonfinite_count
from raymerge.errors import ExecutionError, Problem
from raymerge.merging.nouns import ShardOptions
from raymerge.merging.peak import peak_bytes
from raymerge.planning.jobs import COPY
from raymerge.planning.nouns import ShardReceipt, ShardTask, TensorJob
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
    """Read a finished output file for what an interrupted run did not live to note: checksum, values not finite.

    Raises ExecutionError for merged values that are not finite, where these are an error.
    """
    started = time.monotonic()
    url = join_url(options.out, task.file_name)
    found = store_for(url).info(url)
    checksum, nonfinite = 0, dict[str, int]()
    for data, job in _contents(task, found):
        checksum = crc32(data, checksum)
        if job is None or job.method == COPY:
            continue
        if count := nonfinite_count(data, job.output.dtype):
            nonfinite[job.output.name] = nonfinite.get(job.output.name, 0) + count
    if nonfinite and options.fail_on_nonfinite:
        raise ExecutionError(*nonfinite_problems(task.file_name, nonfinite))
    return receipt(task, replace(found, crc32=checksum), nonfinite, started)


def nonfinite_problems(file_name: str, nonfinite: Mapping[str, int]) -> tuple[Problem, ...]:
    """What is wrong with a file that an earlier run made and only warned of."""
    return tuple(
        Problem(
            subject=f"{name} in {file_name}",
            message=f"{count} results of an earlier run are not finite",
            remedy="check the inputs (raymerge verify MODEL --full), or go on with --nan warn",
        )
        for name, count in nonfinite.items()
    )


def _contents(task: ShardTask, found: ObjectInfo) -> Iterator[tuple[memoryview, TensorJob | None]]:
    """A file front to back, piece by piece, each of one job; None for the header. Small neighbours are read together.

    A piece is gone once the next is asked for.
    """
    header_bytes = found.nbytes - task.tensor_bytes
    sizes: list[tuple[int, TensorJob | None]] = [(header_bytes, None)]
    sizes += [(job.output.nbytes, job) for job in task.jobs]
    pieces = deque((min(_CHUNK_BYTES, left), job) for size, job in sizes for left in range(size, 0, -_CHUNK_BYTES))
    store, offset = store_for(found.url), 0
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, found.nbytes)))
    while pieces:
        together = [pieces.popleft()]
        while pieces and sum(nbytes for nbytes, _ in together) + pieces[0][0] <= _CHUNK_BYTES:
            together.append(pieces.popleft())
        window = buffer[: sum(nbytes for nbytes, _ in together)]
        store.read_into(found.url, window, offset=offset, version=found.version)
        offset += len(window)
        for nbytes, job in together:
            yield window[:nbytes], job
            window = window[nbytes:]


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
