"""Weights that bitsandbytes stores in 4 bits (nf4, fp4), with their absmax values quantized again or not."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

from raymerge.checkpoint.decoding import Decoding
from raymerge.checkpoint.nouns import TensorRef
from raymerge.checkpoint.steps import LookUp4Bit
from raymerge.checkpoint.strict_json import json_object
from raymerge.dtypes import DType
from raymerge.errors import CheckpointError
from raymerge.storage import store_for

_STATE = ".quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # those of the library
_RESULTS = {"float16": DType.F16, "bfloat16": DType.BF16, "float32": DType.F32}
_MAX_STATE_BYTES = 4096  # a state has some 200
_CONCURRENT_READS = 16
_USED = "used to decode 4-bit weights of bitsandbytes"


class _UnfitError(Exception):
    """Parts of a weight that do not fit together: the tensor's name, and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What a weight's state says, as JSON in a tensor of its own; the only bytes of tensors that planning reads."""

    shape: tuple[int, ...]
    block: int
    rounded_to: DType
    nested_block: int
    offset: float


def decode_bitsandbytes(decoding: Decoding) -> None:
    """As the library's dequantize_4bit. Its 8-bit weights have no such parts, and are left for a refusal by name."""
    states = {name.partition(_STATE)[0]: name for name in decoding.tensors if _STATE in name}
    with ThreadPoolExecutor(_CONCURRENT_READS, thread_name_prefix="raymerge-state") as pool:
        texts = dict(zip(states, pool.map(_read, [decoding.tensors[name] for name in states.values()]), strict=True))
    for weight, state_name in states.items():
        _decode_or_complain(decoding, weight, state_name, texts[weight])


def _read(ref: TensorRef) -> bytes:
    buffer = bytearray(min(ref.nbytes, _MAX_STATE_BYTES))
    store_for(ref.file.url).read_into(ref.file.url, buffer, offset=ref.offset, version=ref.file.version)
    return bytes(buffer)


def _decode_or_complain(decoding: Decoding, weight: str, state_name: str, text: bytes) -> None:
    try:
        _decode(decoding, weight, state_name, text)
    except _UnfitError as error:
        decoding.complain(*error.args)


def _decode(decoding: Decoding, weight: str, state_name: str, text: bytes) -> None:
    kind = state_name.rpartition("__")[2]
    if kind not in _KINDS:
        raise _UnfitError(state_name, f"names the type {kind}, expected nf4 or fp4")
    parts = {name: _part(decoding, weight, name) for name in ("absmax", "quant_map")}
    is_nested = f"{weight}.nested_absmax" in decoding.tensors
    if is_nested:
        parts |= {name: _part(decoding, weight, name) for name in ("nested_absmax", "nested_quant_map")}
    stored = decoding.tensors.get(weight)
    if stored is None:
        raise _UnfitError(state_name, f"has no weight {weight} beside it")
    state = _state(text, state_name, is_nested=is_nested)
    _check(weight, stored, parts, state)
    for name in (state_name, *(f"{weight}.{part}" for part in parts)):
        decoding.take(name, serves=weight, rule=_USED)
    step = LookUp4Bit(
        absmax=parts["absmax"],
        code=parts["quant_map"],
        block=state.block,
        rounded_to=state.rounded_to,
        nested_absmax=parts.get("nested_absmax"),
        nested_code=parts.get("nested_quant_map"),
        nested_block=state.nested_block,
        offset=state.offset,
    )
    decoding.put(weight, stored, state.shape, step)


def _part(decoding: Decoding, weight: str, name: str) -> TensorRef:
    ref = decoding.tensors.get(f"{weight}.{name}")
    if ref is None:
        raise _UnfitError(weight, f"has no {weight}.{name}")
    return ref


def _state(text: bytes, name: str, *, is_nested: bool) -> _State:
    try:
        values = json_object(text, name)
    except CheckpointError as error:
        raise _UnfitError(name, error.problems[0].message) from error
    block, nested_block = values.get("blocksize"), values.get("nested_blocksize") if is_nested else 0
    offset = values.get("nested_offset") if is_nested else 0.0
    return _State(
        shape=_shape(values, name),
        block=_checked(block, block in _BLOCKS, "blocksize", name),
        rounded_to=_RESULTS[_checked(values.get("dtype"), values.get("dtype") in _RESULTS, "dtype", name)],
        nested_block=_checked(
            nested_block, type(nested_block) is int and (nested_block > 0) == is_nested, "nested_blocksize", name
        ),
        offset=_checked(offset, isinstance(offset, float) and isfinite(offset), "nested_offset", name),
    )


def _shape(values: Mapping[str, Any], name: str) -> tuple[int, ...]:
    shape = values.get("shape")
    fits = isinstance(shape, list) and len(shape) > 0 and all(type(size) is int and size > 0 for size in shape)
    return tuple(_checked(shape, fits, "shape", name))


def _checked(value: Any, fits: bool, key: str, name: str) -> Any:
    if not fits:
        raise _UnfitError(name, f"has {key} {value!r}, which bitsandbytes does not write")
    return value


def _check(weight: str, stored: TensorRef, parts: Mapping[str, TensorRef], state: _State) -> None:
    """That every part has as many elements as the shape asks for."""
    count = prod(state.shape)
    blocks = -(-count // state.block)
    expected = {"absmax": blocks, "quant_map": 16}
    if state.nested_block:
        expected |= {"nested_absmax": -(-blocks // max(1, state.nested_block)), "nested_quant_map": 256}
    if stored.nbytes != -(-count // 2) or (stored.spec.shape[:1] == (1,) and count > 2):
        raise _UnfitError(
            weight, f"has {stored.nbytes} bytes of shape {stored.spec.shape}, its state says {state.shape}"
        )
    for part, size in expected.items():
        spec = parts[part].spec
        dtype = DType.U8 if part == "absmax" and state.nested_block else DType.F32
        if spec.element_count != size or spec.dtype is not dtype:
            found = f"{spec.element_count} elements of type {spec.dtype.value}"
            raise _UnfitError(
                spec.name, f"has {found}, for a weight of shape {state.shape} expected {size} of {dtype.value}"
            )
