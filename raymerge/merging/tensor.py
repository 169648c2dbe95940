"""Merging one tensor: the method's scans, then a last pass that combines, rounds and hands bytes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raymerge.compute.operations import Operations
from raymerge.compute.random_bits import stream_key
from raymerge.merging.scan import Scanner, held_windows
from raymerge.methods import method as find_method
from raymerge.methods.inputs import Inputs
from raymerge.planning.nouns import TensorJob

Bytes = Any  # a 1-D uint8 numpy array


def merge_held(job: TensorJob, raw: Sequence[Bytes], out: Bytes, operations: Operations, block_elements: int) -> int:
    """Merge inputs that lie in memory whole into `out`; returns how many results are not finite."""
    scanner = Scanner(job, operations, block_elements, lambda: held_windows(job, raw))
    width = job.output.dtype.bits // 8
    return merge_tensor(job, scanner, operations, lambda start, end: out[start * width : end * width])


def merge_tensor(job: TensorJob, scanner: Scanner, operations: Operations, place: Callable[[int, int], Bytes]) -> int:
    """Merge; `place(start, end)` gives the bytes that elements [start, end) of the output are written to.

    Returns how many results are not finite. Blocks are combined in element order.
    """
    if job.output.element_count == 0:
        return 0
    method = find_method(job.method)
    inputs = Inputs(
        shape=job.output.shape,
        shared=job.parameters,
        each=tuple(each.parameters for each in job.inputs),
        keys=tuple(stream_key(job.seed, slot, job.output.name) for slot in job.slots),
        has_base=job.base is not None,
        operations=operations,
        open_scan=scanner.scan,
    )
    combine = method.merge(inputs)
    nonfinite = 0
    for block in scanner.scan(method.rows):
        merged = combine(block)
        nonfinite += operations.encode(merged, job.output.dtype, place(block.start, block.start + block.count))
    return nonfinite
