"""Checkpoints that exist only as headers, laid out in files as the hub's large models are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from planning import checkpoint

from raymerge.checkpoint.nouns import Checkpoint, SourceFile, TensorRef, TensorSpec
from raymerge.dtypes import DType

LLAMA_70B = {"layers": 80, "hidden": 8192, "inner": 28672, "vocab": 128256, "kv": 1024}
_HEADER_BYTES = 12_344  # about what the header of a file with 27 tensors takes


def llama_shapes_in_model_order(
    *, layers: int, hidden: int, inner: int, vocab: int, kv: int
) -> dict[str, tuple[int, ...]]:
    """Names in the order in which transformers holds and cuts them into files."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        head = f"model.layers.{i}"
        shapes[f"{head}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"{head}.self_attn.k_proj.weight"] = (kv, hidden)
        shapes[f"{head}.self_attn.v_proj.weight"] = (kv, hidden)
        shapes[f"{head}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{head}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{head}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{head}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{head}.input_layernorm.weight"] = (hidden,)
        shapes[f"{head}.post_attention_layernorm.weight"] = (hidden,)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def hub_checkpoint(
    reference: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    file_bytes: int,
    dtypes: Mapping[str, DType] | None = None,
    scheme: str = "s3",
) -> Checkpoint:
    """Cut into files of at most `file_bytes` in the order given, sorted inside each as safetensors sorts them."""
    plain = checkpoint(reference, shapes, dtypes=dtypes)
    url = f"{scheme}://models/{reference}"
    tensors: dict[str, TensorRef] = {}
    files = []
    groups = list(_cut([ref.spec for ref in plain.tensors.values()], file_bytes))
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        file = SourceFile(url=f"{url}/{name}", nbytes=0, version="v", identity=f"{reference}-{number}")
        files.append(file)
        offset = _HEADER_BYTES
        for spec in sorted(group, key=lambda spec: (-spec.dtype.bits, spec.name)):
            tensors[spec.name] = TensorRef(spec=spec, file=file, offset=offset)
            offset += spec.nbytes
    return dataclasses.replace(plain, url=url, tensors=tensors, files=tuple(files))


def _cut(specs: list[TensorSpec], file_bytes: int) -> Iterator[list[TensorSpec]]:
    group: list[TensorSpec] = []
    for spec in specs:
        if group and sum(each.nbytes for each in group) + spec.nbytes > file_bytes:
            yield group
            group = []
        group.append(spec)
    yield group
