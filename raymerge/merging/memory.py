"""Merged tensors in memory, for callers that want no files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from raymerge.compute.operations import open_operations
from raymerge.dtypes import DType
from raymerge.errors import ExecutionError, Problem
from raymerge.merging.scan import read_held
from raymerge.merging.tensor import merge_held, whole
from raymerge.planning.jobs import COPY
from raymerge.planning.memory import BLOCK_ELEMENTS
from raymerge.planning.nouns import Plan, TensorJob

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {
    DType.BOOL: "bool",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.U16: "uint16",
    DType.I16: "int16",
    DType.U32: "uint32",
    DType.I32: "int32",
    DType.U64: "uint64",
    DType.I64: "int64",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.F32: "float32",
    DType.F64: "float64",
}


def merged_tensors(
    plan: Plan, *, device: str = "cpu", fail_on_nonfinite: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every output tensor with its name, in file order, on the CPU.

    Raises ExecutionError for merged values that are not finite, where these are an error.
    """
    import torch

    operations = open_operations(device)
    for shard in plan.shards:
        for job in shard.jobs:
            raw = read_held(job, _buffer)
            out = raw[0]
            if job.method != COPY:
                out = np.empty(job.output.nbytes, dtype=np.uint8)
                count = merge_held(job, raw, whole(job, out), operations, BLOCK_ELEMENTS)
                if count and fail_on_nonfinite:
                    raise ExecutionError(_not_finite(job, count))
            dtype = getattr(torch, _TORCH_NAMES[job.output.dtype])
            # torch does not view no bytes as wider elements
            made = torch.from_numpy(out).view(dtype) if out.size else torch.empty(0, dtype=dtype)
            yield job.output.name, made.reshape(job.output.shape)


def _not_finite(job: TensorJob, count: int) -> Problem:
    return Problem(
        subject=job.output.name,
        message=f"{count} of {job.output.element_count} results are not finite",
        remedy='check the inputs (raymerge verify MODEL --full), or go on with nan="warn"',
    )


def _buffer(nbytes: int) -> Any:
    return np.empty(nbytes, dtype=np.uint8)
