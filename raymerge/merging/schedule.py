"""A shard's file in the order of its making: what is read together, what streams, what is copied or moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from raymerge.checkpoint.nouns import SourceFile, TensorRef
from raymerge.planning.copies import copy_ranges
from raymerge.planning.jobs import COPY
from raymerge.planning.memory import CHUNK_BYTES, held_bytes, is_held, step_bytes
from raymerge.planning.nouns import TensorJob
from raymerge.storage import CopyRange, is_local

# Object stores answer ranges of 8 to 32 MB best: small neighbours are read together until they make one such.
_ENOUGH_BYTES = 8 << 20
_MOST_BYTES = 12 << 20  # the first tensors are there the sooner, the less is read beside them
# Of a task's room for one batch, so that the next ones arrive while it merges.
_BATCHES_IN_ROOM = 4
# A largest tensor begins while there is so much more than its own work left for each of the other threads. Too early
# costs nothing, for its thread then shares the rest; too late, others wait, since it takes longer than its size says:
# it is brought in for every pass, and not all of its masks may be kept. 0.2 s of a DELLA merge of 5.8 s were idle.
_LEAD = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring bytes of one file, read together; or all that is `gathered` for a tensor, from several places."""

    file: SourceFile
    offset: int
    nbytes: int
    gathered: TensorRef | None = None

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs whose tensors lie in memory whole.

    `runs` are what they read; `places` says for the key of what is read which run holds it, and where.
    """

    jobs: tuple[TensorJob, ...]
    runs: tuple[Run, ...]
    places: Mapping[tuple[str | int, ...], tuple[int, int]]

    @property
    def read_bytes(self) -> int:
        return sum(run.nbytes for run in self.runs)

    @property
    def held_bytes(self) -> int:
        return self.read_bytes + sum(job.output.nbytes + step_bytes(job) for job in self.jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A job whose tensors are too large to lie in memory."""

    job: TensorJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Ranges that the destination's store copies by itself."""

    ranges: tuple[CopyRange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Bytes that are moved from another store as they are."""

    source: CopyRange


Step = Batch | Stream | Copy | Chunk


def schedule(jobs: Iterable[TensorJob], room: int, is_copied: Callable[[TensorJob], bool]) -> Iterator[Step]:
    """What to do for `jobs`, in file order; `room` is the memory for tensors, `is_copied` tells what a store copies."""

    def kind(job: TensorJob) -> type[Step]:
        if job.method == COPY:
            return Copy if is_copied(job) else Chunk
        return Batch if is_held(job, room) else Stream

    for each, members in groupby(jobs, key=kind):
        if each is Copy:
            yield Copy(ranges=tuple(copy_ranges(members)))
        elif each is Chunk:
            yield from _chunks(copy_ranges(members))
        elif each is Stream:
            yield from (Stream(job=job) for job in members)
        else:
            yield from _batches(members, room // _BATCHES_IN_ROOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStart:
    """A batch that begins once no more than `left` steps, itself included, have not begun."""

    batch: Batch
    left: int


def early_start(steps: Sequence[Step], threads: int) -> EarlyStart | None:
    """Which of the last steps would be merged alone while other threads are idle, and is to begin before them.

    As soon as the other threads can share the rest in the time that the largest takes, and half as much again; None
    where that is so in file order, or where steps other than batches are among them.
    """
    total = largest_work = 0
    largest: Batch | None = None
    found: EarlyStart | None = None
    for left, step in enumerate(reversed(steps), start=1):
        if not isinstance(step, Batch):
            break
        total += step.held_bytes
        if largest is None or step.held_bytes >= largest_work:
            largest, largest_work = step, step.held_bytes
        if total - largest_work > _LEAD * largest_work * (threads - 1):
            break
        if largest is not step:
            found = EarlyStart(batch=largest, left=left)
    return found


def _chunks(ranges: Iterable[CopyRange]) -> Iterator[Chunk]:
    for whole in ranges:
        for start in range(0, whole.nbytes, CHUNK_BYTES):
            nbytes = min(CHUNK_BYTES, whole.nbytes - start)
            offset = whole.offset + start
            yield Chunk(source=CopyRange(url=whole.url, offset=offset, nbytes=nbytes, version=whole.version))


def _batches(jobs: Iterable[TensorJob], most_held_bytes: int) -> Iterator[Batch]:
    """Consecutive jobs, few enough that what is read of one input stays one request, and `most_held_bytes` in all.

    On a disk a request costs nothing, and every job is a batch of its own.
    """
    members: list[TensorJob] = []
    read = held = 0
    for job in jobs:
        nbytes = max((ref.nbytes for ref in job.refs), default=0)
        needed = held_bytes(job)
        fits = read < _ENOUGH_BYTES or read + nbytes <= _MOST_BYTES
        if members and (_is_near(job) or not fits or held + needed > most_held_bytes):
            yield _batch(members)
            members, read, held = [], 0, 0
        members.append(job)
        read += nbytes
        held += needed
    if members:
        yield _batch(members)


def _is_near(job: TensorJob) -> bool:
    return all(is_local(file.url) for ref in job.reads for file in ref.files)


def _batch(jobs: list[TensorJob]) -> Batch:
    refs = {ref.key: ref for job in jobs for ref in job.reads}
    runs: list[Run] = []
    gathers: list[tuple[tuple[str | int, ...], TensorRef]] = []
    places: dict[tuple[str | int, ...], tuple[int, int]] = {}
    for key, ref in sorted(refs.items(), key=lambda item: item[0]):
        url, offset, nbytes = ref.file.url, ref.offset, ref.nbytes
        if ref.gather is not None:
            gathers.append((key, ref))
            continue
        if runs and runs[-1].file.url == url and offset <= runs[-1].end:
            last = runs.pop()
            end = max(last.end, offset + nbytes)
            runs.append(Run(file=last.file, offset=last.offset, nbytes=end - last.offset))
        else:
            runs.append(Run(file=ref.file, offset=offset, nbytes=nbytes))
        places[key] = (len(runs) - 1, offset - runs[-1].offset)
    for key, ref in gathers:
        places[key] = (len(runs), 0)
        runs.append(Run(file=ref.file, offset=ref.offset, nbytes=ref.nbytes, gathered=ref))
    return Batch(jobs=tuple(jobs), runs=tuple(runs), places=places)
