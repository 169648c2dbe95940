"""Cutting the output into files: layers stay together, tensors keep their inputs' order, names are final."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby, pairwise

from raymerge.planning.nouns import TensorJob
from raymerge.planning.sites import Unit

Placed = tuple[Unit, TensorJob]
Piece = tuple[list[TensorJob], int]  # and their bytes in the output


def order(placed: Iterable[Placed], stack_order: Sequence[str], file_ranks: dict[str, int]) -> list[Placed]:
    """What stands before the layers, the stacks layer by layer, then what stands after.

    Inside a layer, wider element types come first, so that every tensor is aligned, then the order in which the
    leading input stores its tensors: neighbours there stay neighbours here, and copied ranges stay long.
    """
    ranks = {prefix: rank for rank, prefix in enumerate(stack_order)}

    def key(item: Placed) -> tuple[int, int, int, int, int, int]:
        (prefix, index), job = item
        region = 1 if prefix else (0 if index < 0 else 2)
        within = 0 if region != 1 else index
        lead = job.refs[0]
        alignment = -job.output.dtype.alignment_bytes
        return region, ranks.get(prefix, 0), within, alignment, file_ranks[lead.file.url], lead.offset

    return sorted(placed, key=key)


def partition(placed: Sequence[Placed], shard_bytes: int) -> list[tuple[TensorJob, ...]]:
    """Consecutive jobs in files of at most `shard_bytes` of tensors: as few as that allows, and as even as those allow.

    A layer is cut only where it alone exceeds that, a tensor never: one larger than a file has a file of its own.
    Even files end at about the same time on as many machines; a last one that is small would leave some without work.
    """
    pieces = _pieces(placed, shard_bytes)
    ends = [0, *accumulate(nbytes for _, nbytes in pieces)]
    fewest = len(_cuts(ends, shard_bytes))
    least, enough = ends[-1] // max(1, fewest), shard_bytes
    while least < enough:
        middle = (least + enough) // 2
        if len(_cuts(ends, middle)) <= fewest:
            enough = middle
        else:
            least = middle + 1
    cuts = _cuts(ends, enough)
    return [_aligned([job for jobs, _ in pieces[start:end] for job in jobs]) for start, end in pairwise([0, *cuts])]


def _pieces(placed: Sequence[Placed], shard_bytes: int) -> list[Piece]:
    """What is not cut: layers, and the tensors of those that exceed a file."""
    pieces: list[Piece] = []
    for _, members in groupby(placed, key=lambda item: item[0]):
        jobs = [job for _, job in members]
        nbytes = sum(job.output.nbytes for job in jobs)
        if nbytes <= shard_bytes:
            pieces.append((jobs, nbytes))
        else:
            pieces.extend(([job], job.output.nbytes) for job in jobs)
    return pieces


def _cuts(ends: Sequence[int], most_bytes: int) -> list[int]:
    """The index after the last piece of each file, filled one after the other; piece i takes ends[i] to ends[i + 1]."""
    cuts: list[int] = []
    start = 0
    while start < len(ends) - 1:
        start = max(start + 1, bisect_right(ends, ends[start] + most_bytes) - 1)
        cuts.append(start)
    return cuts


def _aligned(jobs: list[TensorJob]) -> tuple[TensorJob, ...]:
    """Wider element types first over the whole file; a stable sort, so nothing moves where all types are alike."""
    return tuple(sorted(jobs, key=lambda job: -job.output.dtype.alignment_bytes))


def file_names(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))
