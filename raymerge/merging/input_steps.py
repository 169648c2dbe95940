"""Carrying out what stands between stored bytes and a tensor's values, for any part of the tensor.

A part's values depend on the tensor alone, never on where blocks and windows are cut. Steps run on the CPU, whatever
device merges, so that their results are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from raymerge.checkpoint.nouns import TensorRef
from raymerge.checkpoint.steps import AddAdapter, Step
from raymerge.compute.operations import Operations, open_operations
from raymerge.dtypes import DType
from raymerge.storage import store_for

Bytes = Any  # a 1-D uint8 numpy array
Values = Any  # a 1-D numpy array of float32, of float64 where the tensor is

_CONCURRENT_READS = 8


class Opened(Protocol):
    """A step with the tensors that it holds."""

    def apply(self, values: Values, start: int) -> Values:
        """The step's results for the elements from `start` on, of which `values` are what came before."""


class OpenedSteps:
    """The steps of one tensor with what they hold in memory. For one thread at a time."""

    def __init__(self, ref: TensorRef, sides: Sequence[Bytes], operations: Operations) -> None:
        self._ref = ref
        self._operations = operations
        self._stored = (ref.stored or ref.spec).dtype
        self.dtype = DType.F64 if ref.spec.dtype is DType.F64 else DType.F32
        waiting = list(sides)
        self._steps = [_open(step, [waiting.pop(0) for _ in step.sides], operations) for step in ref.steps]

    def values(self, raw: Bytes, window_start: int, start: int, end: int) -> Values:
        """Elements [start, end), `dtype` ones; `raw` are the stored bytes of a window that holds them."""
        first, last = self._ref.span(start, end)
        before = self._ref.span(window_start, window_start)[0]
        stored = raw[first - before : last - before]
        values = self._operations.decode(stored, self._stored, wide=self.dtype is DType.F64)
        for step in self._steps:
            values = step.apply(values, start)
        return values


def open_steps(refs: Sequence[TensorRef]) -> list[OpenedSteps | None]:
    """Read what the steps of these tensors need, side by side; None for a tensor without steps."""
    sides = [side for ref in refs for side in ref.sides]
    if not any(ref.steps for ref in refs):
        return [None] * len(refs)
    with ThreadPoolExecutor(min(_CONCURRENT_READS, max(1, len(sides))), thread_name_prefix="raymerge-sides") as pool:
        read = list(pool.map(_read_whole, sides))
    operations = open_operations()
    opened: list[OpenedSteps | None] = []
    for ref in refs:
        own, read = read[: len(ref.sides)], read[len(ref.sides) :]
        opened.append(OpenedSteps(ref, own, operations) if ref.steps else None)
    return opened


def _read_whole(ref: TensorRef) -> Bytes:
    buffer: Bytes = np.empty(ref.nbytes, np.uint8)
    store_for(ref.file.url).read_into(ref.file.url, buffer, offset=ref.offset, version=ref.file.version)
    return buffer


def _open(step: Step, sides: Sequence[Bytes], operations: Operations) -> Opened:
    return _AdapterSum(step, sides, operations)


def _matrix(ref: TensorRef, raw: Bytes, operations: Operations) -> Any:
    decoded = operations.decode(raw, ref.spec.dtype, wide=ref.spec.dtype is DType.F64)
    return decoded.reshape(ref.spec.shape)


class _AdapterSum:
    def __init__(self, step: AddAdapter, sides: Sequence[Bytes], operations: Operations) -> None:
        down, up = (_matrix(ref, raw, operations) for ref, raw in zip(step.sides, sides, strict=True))
        left, right = (down.T, up.T) if step.transposed else (up, down)
        self._left, self._right = np.ascontiguousarray(left), np.ascontiguousarray(right)
        self._scale = step.scale

    def apply(self, values: Values, start: int) -> Values:
        from raymerge.compute.adapter_kernels import add_product

        out = np.empty_like(values)
        add_product(values, start, self._left, self._right, self._scale, out)
        return out
