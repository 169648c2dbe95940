"""Carrying out what stands between stored bytes and a tensor's values, for any part of the tensor.

A part's values depend on the tensor alone, never on where blocks and windows are cut. Steps run on the CPU, whatever
device merges, so that their results are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from raymerge.checkpoint.nouns import TensorRef
from raymerge.checkpoint.steps import AddAdapter, GatherRows, LookUp4Bit, ScaleFloat8, UnpackMxfp4
from raymerge.compute.operations import Operations, open_operations
from raymerge.dtypes import DType
from raymerge.merging.gathering import GatheredRows, Range
from raymerge.storage import store_for

Bytes = Any  # a 1-D uint8 numpy array
Values = Any  # a 1-D numpy array of float32, of float64 where the tensor is

_CONCURRENT_READS = 8


class Adder(Protocol):
    """A step that changes values, with the tensors that it holds."""

    def apply(self, values: Values, start: int) -> Values:
        """The step's results for the elements from `start` on, of which `values` are what came before."""


class Decoder(Protocol):
    """A step that makes values of stored bytes, with the tensors that it holds."""

    def decode(self, stored: Bytes, start: int, out: Values) -> None:
        """Fill `out` with the float32 values from element `start` on; `stored` begins with the unit that holds it."""


class OpenedSteps:
    """The steps of one tensor with what they hold in memory. For one thread at a time."""

    def __init__(self, ref: TensorRef, sides: Sequence[Bytes], operations: Operations) -> None:
        self._ref = ref
        self._operations = operations
        self._stored = (ref.stored or ref.spec).dtype
        self.dtype = DType.F64 if ref.spec.dtype is DType.F64 else DType.F32
        self._decoder: Decoder | None = None
        self._adders: list[Adder] = []
        self._gathered: GatheredRows | None = None
        waiting = list(sides)
        for step in ref.steps:
            own = [waiting.pop(0) for _ in step.sides]
            if isinstance(step, AddAdapter):
                self._adders.append(_AdapterSum(step, own, operations))
            elif isinstance(step, GatherRows):
                opened = _open_each(step.sources, own, operations)
                self._gathered = GatheredRows(step, opened, operations)
            else:
                self._decoder = _decoder(step, ref, own, operations)
                self._rounded_to = step.rounded_to

    def values(self, raw: Bytes, window: Range, start: int, end: int) -> Values:
        """Elements [start, end), `dtype` ones; `raw` are the stored bytes of a window that holds them."""
        if self._gathered is not None:
            return self._gathered.values(raw, window, start, end, wide=self.dtype is DType.F64)
        first, last = self._ref.span(start, end)
        before = self._ref.span(window[0], window[0])[0]
        values = self._decode(raw[first - before : last - before], start, end - start)
        for step in self._adders:
            values = step.apply(values, start)
        return values

    def _decode(self, stored: Bytes, start: int, count: int) -> Values:
        wide = self.dtype is DType.F64
        if self._decoder is None:
            return self._operations.decode(stored, self._stored, wide=wide)
        values = np.empty(count, np.float32)
        self._decoder.decode(stored, start, values)
        if self._rounded_to in {DType.BF16, DType.F16}:
            small = np.empty(count, np.uint16)
            self._operations.encode(values, self._rounded_to, small)
            self._operations.decode(small, self._rounded_to, values)
        return values.astype(np.float64) if wide else values


def open_steps(refs: Sequence[TensorRef], read: Callable[[TensorRef], Bytes] | None = None) -> list[OpenedSteps | None]:
    """The steps of these tensors with what they need; None for a tensor without steps.

    `read` gives the stored bytes of a tensor; where not given, they are read from storage, side by side.
    """
    if not any(ref.steps for ref in refs):
        return [None] * len(refs)
    sides = [side for ref in refs for side in ref.sides]
    found = [read(side) for side in sides] if read is not None else _read_all(sides)
    return _open_each(refs, found, open_operations())


def _open_each(refs: Sequence[TensorRef], sides: Sequence[Bytes], operations: Operations) -> list[OpenedSteps | None]:
    """`sides` are those of all refs, one after the other."""
    opened: list[OpenedSteps | None] = []
    for ref in refs:
        own, sides = sides[: len(ref.sides)], sides[len(ref.sides) :]
        opened.append(OpenedSteps(ref, own, operations) if ref.steps else None)
    return opened


def _read_all(refs: Sequence[TensorRef]) -> list[Bytes]:
    with ThreadPoolExecutor(min(_CONCURRENT_READS, max(1, len(refs))), thread_name_prefix="raymerge-sides") as pool:
        return list(pool.map(_read_whole, refs))


def _read_whole(ref: TensorRef) -> Bytes:
    buffer: Bytes = np.empty(ref.nbytes, np.uint8)
    store_for(ref.file.url).read_into(ref.file.url, buffer, offset=ref.offset, version=ref.file.version)
    return buffer


def _decoder(
    step: ScaleFloat8 | LookUp4Bit | UnpackMxfp4, ref: TensorRef, sides: Sequence[Bytes], operations: Operations
) -> Decoder:
    if isinstance(step, ScaleFloat8):
        return _Float8(step, ref, sides[0], operations)
    if isinstance(step, LookUp4Bit):
        return _FourBit(step, sides, operations)
    return _Mxfp4(step, ref, sides[0])


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


class _Float8:
    def __init__(self, step: ScaleFloat8, ref: TensorRef, scales: Bytes, operations: Operations) -> None:
        from raymerge.compute.decode_kernels import float8_table

        assert ref.stored is not None
        rows, self._columns = ref.spec.shape
        self._block = step.block
        shape = (-(-rows // step.block[0]), -(-self._columns // step.block[1]))
        self._scales = operations.decode(scales, step.scales.spec.dtype).reshape(shape)
        self._table = float8_table(4 if ref.stored.dtype is DType.F8_E4M3 else 5)

    def decode(self, stored: Bytes, start: int, out: Values) -> None:
        from raymerge.compute.decode_kernels import scale_codes

        scale_codes(stored, start, self._columns, self._table, self._scales, self._block, out)


class _FourBit:
    def __init__(self, step: LookUp4Bit, sides: Sequence[Bytes], operations: Operations) -> None:
        raw = dict(zip(step.sides, sides, strict=True))
        self._block = step.block
        self._code = operations.decode(raw[step.code], step.code.spec.dtype)
        if step.nested_absmax is None or step.nested_code is None:
            self._absmax = operations.decode(raw[step.absmax], step.absmax.spec.dtype)
            return
        code = operations.decode(raw[step.nested_code], step.nested_code.spec.dtype)
        scales = operations.decode(raw[step.nested_absmax], step.nested_absmax.spec.dtype)
        self._absmax = code[raw[step.absmax]]
        self._absmax *= np.repeat(scales, step.nested_block)[: len(self._absmax)]
        self._absmax += np.float32(step.offset)

    def decode(self, stored: Bytes, start: int, out: Values) -> None:
        from raymerge.compute.decode_kernels import look_up

        look_up(stored, start, self._code, self._absmax, self._block, out)


class _Mxfp4:
    def __init__(self, step: UnpackMxfp4, ref: TensorRef, scales: Bytes) -> None:
        from raymerge.compute.decode_kernels import fp4_table, power_table

        self._columns = ref.spec.shape[-1]
        self._scales = scales.reshape(step.scales.spec.shape)
        self._tables = fp4_table(), power_table()

    def decode(self, stored: Bytes, start: int, out: Values) -> None:
        from raymerge.compute.decode_kernels import unpack_transposed

        unpack_transposed(stored, start, self._columns, *self._tables, self._scales, out)
