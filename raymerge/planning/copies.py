"""Which bytes of the output are ranges of the inputs, and which of them the destination's store copies by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from raymerge.checkpoint.nouns import TensorRef
from raymerge.planning.header import shard_header
from raymerge.planning.jobs import COPY
from raymerge.planning.nouns import ShardTask, TensorJob
from raymerge.storage.base import CopyRange, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """Where the bytes of an output come from.

    Of `output_bytes` (headers too), the store of the destination copies `copied_bytes` by itself; workers read
    `read_bytes` and write `written_bytes`.
    """

    output_bytes: int
    copied_bytes: int
    read_bytes: int

    @property
    def written_bytes(self) -> int:
        return self.output_bytes - self.copied_bytes

    @property
    def copied_share(self) -> float:
        return self.copied_bytes / self.output_bytes if self.output_bytes else 0.0


def movement(shards: Iterable[ShardTask], store: Store) -> Movement:
    """What moves when `shards` are written to `store`; the other small files are not counted."""
    output = copied = read = 0
    for shard in shards:
        pieces = shard_pieces(shard)
        in_store = store.copied_bytes(pieces)
        output += sum(piece.nbytes if isinstance(piece, CopyRange) else piece for piece in pieces)
        copied += in_store
        read += shard.read_bytes - in_store
    return Movement(output_bytes=output, copied_bytes=copied, read_bytes=read)


def shard_pieces(shard: ShardTask) -> tuple[CopyRange | int, ...]:
    """A file front to back: numbers of bytes that are written (the header, merged tensors), and ranges copied."""
    pieces: list[CopyRange | int] = [len(shard_header(shard))]
    for job in shard.jobs:
        _append(pieces, job)
    return tuple(pieces)


def copy_ranges(jobs: Iterable[TensorJob]) -> Iterator[CopyRange]:
    """The byte ranges that copies consist of, neighbours in one file joined."""
    pieces: list[CopyRange | int] = []
    for job in jobs:
        _append(pieces, job)
    return (piece for piece in pieces if isinstance(piece, CopyRange))


def is_copied(job: TensorJob, store: Store) -> bool:
    """Whether a job is a range that `store` copies by itself, so that no worker sees its bytes."""
    return job.method == COPY and store.copies_from(job.inputs[0].ref.file.url)


def needs_no_worker(shard: ShardTask, store: Store) -> bool:
    return all(is_copied(job, store) for job in shard.jobs)


def _append(pieces: list[CopyRange | int], job: TensorJob) -> None:
    last = pieces[-1] if pieces else 0
    if not job.output.nbytes:
        return
    if job.method != COPY:
        pieces.append(job.output.nbytes)
        return
    ref = job.inputs[0].ref
    if isinstance(last, CopyRange) and _follows(ref, last):
        pieces[-1] = replace(last, nbytes=last.nbytes + ref.spec.nbytes)
    else:
        pieces.append(CopyRange(url=ref.file.url, offset=ref.offset, nbytes=ref.spec.nbytes, version=ref.file.version))


def _follows(ref: TensorRef, before: CopyRange) -> bool:
    return ref.file.url == before.url and ref.offset == before.offset + before.nbytes
