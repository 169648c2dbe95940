"""Float8 weights with their scales: DeepSeek's blocks (`weight_scale_inv`), and compressed-tensors (`weight_scale`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from raymerge.checkpoint.decoding import Decoding
from raymerge.checkpoint.nouns import TensorRef
from raymerge.checkpoint.steps import ScaleFloat8
from raymerge.dtypes import DType

Block = tuple[int, int]

_FLOAT8 = frozenset({DType.F8_E4M3, DType.F8_E5M2})
_SCALES = frozenset({DType.F32, DType.BF16, DType.F16})
# Scales of what is computed with the weights, not of the weights.
_OF_ACTIVATIONS = re.compile(r"(.+)\.(input_scale|output_scale|activation_scale|[kqv]_scale)")
_OTHER_CODES = re.compile(r".+\.(weight_packed|weight_zero_point|weight_global_scale|weight_g_idx|weight_shape)")
_USED = "used to decode float8 weights"


def decode_block_float8(decoding: Decoding) -> None:
    """As DeepSeek-V3's inference code and transformers: float32 products, rounded to the model's element type."""
    blocks = _pairs([decoding.settings.get("weight_block_size")])
    _decode(decoding, "_scale_inv", blocks, rounded_to=decoding.dtype)


def decode_compressed_tensors(decoding: Decoding) -> None:
    """As the library: products in the element type of the scales. Formats other than float8 are refused."""
    for name in decoding.tensors:
        if _OTHER_CODES.fullmatch(name):
            decoding.complain(
                name, "is of a format of compressed-tensors that is not decoded here", "use a copy in bfloat16"
            )
            return
    groups = [group for group in (decoding.settings.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    weights = [group["weights"] for group in groups if isinstance(group.get("weights"), Mapping)]
    _decode(decoding, "_scale", _pairs([each.get("block_structure") for each in weights]), rounded_to=None)


def _decode(decoding: Decoding, suffix: str, blocks: list[Block], *, rounded_to: DType | None) -> None:
    for name, ref in list(decoding.tensors.items()):
        if ref.spec.dtype not in _FLOAT8:
            continue
        scale_name = f"{name}{suffix}"
        scales = decoding.tensors.get(scale_name)
        if scales is None:
            decoding.complain(name, f"holds {ref.spec.dtype.value} codes and has no {scale_name}")
            continue
        block = _block_of(decoding, ref, scales, blocks)
        if block is not None:
            decoding.take(scale_name, serves=name, rule=_USED)
            step = ScaleFloat8(scales=scales, block=block, rounded_to=rounded_to or scales.spec.dtype)
            decoding.put(name, ref, ref.spec.shape, step)
    _drop_activation_scales(decoding)


def _block_of(decoding: Decoding, ref: TensorRef, scales: TensorRef, blocks: list[Block]) -> Block | None:
    """Rows and columns that share a scale, by the shape of the scales; a complaint where none fits."""
    if len(ref.spec.shape) != 2 or 0 in ref.spec.shape:
        decoding.complain(ref.spec.name, f"has shape {ref.spec.shape}, expected a matrix", "use a copy in bfloat16")
        return None
    if scales.spec.dtype not in _SCALES:
        message = f"holds {scales.spec.dtype.value} scales, expected F32, BF16 or F16"
        decoding.complain(scales.spec.name, message, "use a copy in bfloat16")
        return None
    rows, columns = ref.spec.shape
    shape = scales.spec.shape
    candidates = {(): (rows, columns), (1,): (rows, columns), (1, 1): (rows, columns), (rows, 1): (1, columns)}
    for block in blocks:
        candidates[-(-rows // block[0]), -(-columns // block[1])] = block
    if shape not in candidates:
        found = " or ".join(str(each) for each in dict.fromkeys(candidates) if len(each) == 2)
        message = f"has shape {shape}, for a weight of shape {ref.spec.shape} expected {found}"
        decoding.complain(scales.spec.name, message)
        return None
    return candidates[shape]


def _drop_activation_scales(decoding: Decoding) -> None:
    found = {name: match[1] for name in decoding.tensors if (match := _OF_ACTIVATIONS.fullmatch(name)) is not None}
    first = next((name for name in decoding.tensors if name not in found), "")
    for name, module in found.items():
        weight = f"{module}.weight"
        beside = weight if weight in decoding.tensors else first
        decoding.drop(name, beside=beside, rule="scale of quantized activations: the output has none")


def _pairs(values: list[Any]) -> list[Block]:
    return list(_valid_pairs(values))


def _valid_pairs(values: list[Any]) -> Iterator[Block]:
    for value in values:
        if (
            isinstance(value, list | tuple)
            and len(value) == 2
            and all(type(size) is int and size > 0 for size in value)
        ):
            yield value[0], value[1]
