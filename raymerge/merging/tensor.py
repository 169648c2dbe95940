"""Merging one tensor: the method's scans, then a last pass that combines, rounds and hands bytes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raymerge.compute.operations import Operations
from raymerge.compute.random_bits import stream_key
from raymerge.errors import ExecutionError, Problem
from raymerge.merging.input_steps import OpenedSteps
from raymerge.merging.scan import Scanner, held_windows
from raymerge.methods import Block, Method
from raymerge.methods import method as find_method
from raymerge.methods.extension import check_code, formula_error
from raymerge.methods.inputs import Inputs
from raymerge.planning.nouns import TensorJob

Bytes = Any  # a 1-D uint8 numpy array
Place = Callable[[int, int], Bytes]
"""Gives the bytes that elements [start, end) of the output are written to; they are asked for in element order."""


def merge_held(
    job: TensorJob,
    raw: Sequence[Bytes],
    place: Place,
    operations: Operations,
    block_elements: int,
    *,
    steps: Sequence[OpenedSteps | None] = (),
) -> int:
    """Merge inputs that lie in memory whole; returns how many results are not finite.

    `steps` are those of the inputs, opened; where not given, they are opened when they are needed.
    """
    scanner = Scanner(job, operations, block_elements, lambda _rows: held_windows(job, raw), steps=steps)
    return merge_tensor(job, scanner, operations, place)


def whole(job: TensorJob, out: Bytes) -> Place:
    """The places of a job's output in memory that holds all of it."""
    width = job.output.dtype.bits // 8
    return lambda start, end: out[start * width : end * width]


def merge_tensor(job: TensorJob, scanner: Scanner, operations: Operations, place: Place) -> int:
    """Merge what `scanner` reads; returns how many results are not finite. Blocks are combined in element order."""
    if job.output.element_count == 0:
        return 0
    method = find_method(job.method)
    check_code(method, job.method_sha256)
    try:
        return _merge(method, job, scanner, operations, place)
    except Exception as error:  # what comes out of a method's own code is told by its file and line
        told = formula_error(method, job.output.name, error)
        if told is None:
            raise
        raise told from error


def _merge(method: Method, job: TensorJob, scanner: Scanner, operations: Operations, place: Place) -> int:
    combine = method.merge(_inputs(job, scanner, operations))
    nonfinite = 0
    dtype = job.output.dtype
    for block in scanner.scan(method.needs_rows(job.parameters)):
        stored = place(block.start, block.start + block.count)
        block.out = operations.view(stored, dtype) if scanner.lends else None
        merged = combine(block)
        if job.method_sha256:
            _check_result(method, job, block, merged)
        if merged is block.out:
            nonfinite += operations.count_nonfinite(merged)
        else:
            nonfinite += operations.encode(merged, dtype, stored)
    return nonfinite


def observe_tensor(job: TensorJob, scanner: Scanner, operations: Operations, details: Any) -> Any:
    """What a first phase's question finds in one tensor: an array of counts."""
    method = find_method(job.method)
    check_code(method, job.method_sha256)
    assert method.survey is not None
    return method.survey.observe(_inputs(job, scanner, operations), details)


def _inputs(job: TensorJob, scanner: Scanner, operations: Operations) -> Inputs:
    return Inputs(
        shape=job.output.shape,
        shared=job.parameters,
        each=tuple({**each.parameters, **each.found} for each in job.inputs),
        keys=tuple(stream_key(job.seed, slot, job.output.name) for slot in job.slots),
        has_base=job.base is not None,
        operations=operations,
        open_scan=scanner.scan,
        open_count=scanner.scan_to_count,
    )


def _check_result(method: Method, job: TensorJob, block: Block, merged: Any) -> None:
    """Kernels trust the sizes of what they are given; a method from outside may return anything."""
    shape, dtype = tuple(getattr(merged, "shape", ())), str(getattr(merged, "dtype", type(merged).__name__))
    kind, expected = type(block.x[0]), str(block.x[0].dtype)
    if shape == (block.count,) and dtype.endswith((expected, "float64")) and type(merged) is kind:
        return
    raise ExecutionError(
        Problem(
            subject=f"{method.name} on {job.output.name}",
            message=f"a block came out as {type(merged).__name__} of shape {shape}, {dtype}",
            remedy=f"return what the block's arrays are: {kind.__name__} of shape ({block.count},), {expected}",
        )
    )
