"""Experts in MXFP4 as gpt-oss stores them: `NAME_blocks` and `NAME_scales`, transposed from what models use."""

from __future__ import annotations

from raymerge.checkpoint.decoding import Decoding
from raymerge.checkpoint.nouns import Helper
from raymerge.checkpoint.steps import UnpackMxfp4
from raymerge.dtypes import DType

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK_BYTES = 16  # 32 codes of four bits


def decode_mxfp4(decoding: Decoding) -> None:
    """As convert_moe_packed_tensors of transformers, into bfloat16: NAME has the shape (experts, inputs, outputs)."""
    for blocks_name in [name for name in decoding.tensors if name.endswith(_BLOCKS)]:
        name = blocks_name.removesuffix(_BLOCKS)
        blocks, scales = decoding.tensors[blocks_name], decoding.tensors.get(f"{name}{_SCALES}")
        if scales is None:
            decoding.complain(blocks_name, f"has no {name}{_SCALES}")
            continue
        shape, other = blocks.spec.shape, scales.spec.shape
        codes = (blocks.spec.dtype, scales.spec.dtype)
        if (
            len(shape) != 4
            or shape[3] != _BLOCK_BYTES
            or 0 in shape
            or other != shape[:3]
            or codes != (DType.U8, DType.U8)
        ):
            found = f"{codes[0].value} blocks of shape {shape}, {codes[1].value} scales {other}"
            decoding.complain(
                blocks_name, f"found {found}; expected U8 (experts, outputs, groups, 16) and (experts, outputs, groups)"
            )
            continue
        if name in decoding.tensors:
            decoding.complain(name, f"stands beside {blocks_name}, which decodes to it")
            continue
        experts, outputs, groups = other
        decoding.take(scales.spec.name, serves=name, rule="used to decode MXFP4 weights")
        step = UnpackMxfp4(scales=scales, rounded_to=DType.BF16)
        decoding.put(name, blocks, (experts, groups * 2 * _BLOCK_BYTES, outputs), step)
        decoding.helpers[blocks_name] = Helper(serves=name, rule="decoded from MXFP4")
