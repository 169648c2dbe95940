"""Cutting the output into files: layers stay together, tensors keep their inputs' order, names are final."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from raymerge.planning.nouns import TensorJob
from raymerge.planning.sites import Unit

Placed = tuple[Unit, TensorJob]


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
    """Consecutive jobs in files of at most `shard_bytes` of tensors.

    A layer is cut only where it alone exceeds that, a tensor never: one larger than a file has a file of its own.
    """
    shards: list[list[TensorJob]] = []
    filled = 0

    def append(jobs: list[TensorJob], nbytes: int) -> None:
        nonlocal filled
        if not shards or (filled and filled + nbytes > shard_bytes):
            shards.append([])
            filled = 0
        shards[-1].extend(jobs)
        filled += nbytes

    for _, members in groupby(placed, key=lambda item: item[0]):
        jobs = [job for _, job in members]
        nbytes = sum(job.output.nbytes for job in jobs)
        if nbytes <= shard_bytes:
            append(jobs, nbytes)
        else:
            for job in jobs:
                append([job], job.output.nbytes)
    return [_aligned(shard) for shard in shards]


def _aligned(jobs: list[TensorJob]) -> tuple[TensorJob, ...]:
    """Wider element types first over the whole file; a stable sort, so nothing moves where all types are alike."""
    return tuple(sorted(jobs, key=lambda job: -job.output.dtype.alignment_bytes))


def file_names(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))
