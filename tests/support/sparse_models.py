"""Checkpoints of full size that take no room: true headers over files of holes, which read as zeros.

A test may fill single tensors with numbers (`fill`), so that a merge of them has something to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
Tensors = dict[str, tuple[str, Shape]]
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSize:
    """A published architecture: its tensors by name (dtype code and shape), config, and how many files hold them."""

    tensors: Tensors
    config: Mapping[str, Any]
    file_count: int = 1

    @property
    def nbytes(self) -> int:
        return sum(_nbytes(*entry) for entry in self.tensors.values())


def llama(
    *,
    layers: int,
    hidden: int,
    inner: int,
    vocab: int = 128256,
    kv: int = 1024,
    file_count: int = 1,
    head: bool = True,
) -> FullSize:
    """A Llama 3: 70B is (80, 8192, 28672), 405B (126, 16384, 53248)."""
    tensors: Tensors = {"model.embed_tokens.weight": ("BF16", (vocab, hidden))}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}{name}.weight": ("BF16", shape)
            for name, shape in (
                ("input_layernorm", (hidden,)),
                ("mlp.down_proj", (hidden, inner)),
                ("mlp.gate_proj", (inner, hidden)),
                ("mlp.up_proj", (inner, hidden)),
                ("post_attention_layernorm", (hidden,)),
                ("self_attn.k_proj", (kv, hidden)),
                ("self_attn.o_proj", (hidden, hidden)),
                ("self_attn.q_proj", (hidden, hidden)),
                ("self_attn.v_proj", (kv, hidden)),
            )
        }
    tensors |= {"model.norm.weight": ("BF16", (hidden,))}
    tensors |= {"lm_head.weight": ("BF16", (vocab, hidden))} if head else {}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": hidden // 128,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv // 128,
        "tie_word_embeddings": not head,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
    }
    return FullSize(tensors=tensors, config=config, file_count=file_count)


def llama_70b(*, layers: int = 80, head: bool = True) -> FullSize:
    return llama(layers=layers, hidden=8192, inner=28672, file_count=30 if layers == 80 else 1, head=head)


def llama_405b() -> FullSize:
    return llama(layers=126, hidden=16384, inner=53248, file_count=191)


def deepseek_671b() -> FullSize:
    """DeepSeek-V3 as published, 91,991 tensors in 163 files, its FP8 matrices as bfloat16; scales stay beside them."""
    hidden, vocab = 7168, 129280
    tensors: Tensors = {"model.embed_tokens.weight": ("BF16", (vocab, hidden))}

    def matrix(name: str, rows: int, columns: int) -> Tensors:
        scale = (-(-rows // 128), -(-columns // 128))
        return {f"{name}.weight": ("BF16", (rows, columns)), f"{name}.weight_scale_inv": ("F32", scale)}

    def mlp(prefix: str, inner: int) -> Tensors:
        return {
            **matrix(f"{prefix}.gate_proj", inner, hidden),
            **matrix(f"{prefix}.up_proj", inner, hidden),
            **matrix(f"{prefix}.down_proj", hidden, inner),
        }

    for layer in range(62):
        prefix = f"model.layers.{layer}."
        attention = f"{prefix}self_attn."
        if layer == 61:
            tensors |= {
                f"{prefix}embed_tokens.weight": ("BF16", (vocab, hidden)),
                f"{prefix}enorm.weight": ("BF16", (hidden,)),
                f"{prefix}hnorm.weight": ("BF16", (hidden,)),
                f"{prefix}eh_proj.weight": ("BF16", (hidden, 2 * hidden)),
                f"{prefix}shared_head.norm.weight": ("BF16", (hidden,)),
                f"{prefix}shared_head.head.weight": ("BF16", (vocab, hidden)),
            }
        tensors |= {
            f"{prefix}input_layernorm.weight": ("BF16", (hidden,)),
            f"{prefix}post_attention_layernorm.weight": ("BF16", (hidden,)),
            **matrix(f"{attention}q_a_proj", 1536, hidden),
            f"{attention}q_a_layernorm.weight": ("BF16", (1536,)),
            **matrix(f"{attention}q_b_proj", 24576, 1536),
            **matrix(f"{attention}kv_a_proj_with_mqa", 576, hidden),
            f"{attention}kv_a_layernorm.weight": ("BF16", (512,)),
            **matrix(f"{attention}kv_b_proj", 32768, 512),
            **matrix(f"{attention}o_proj", hidden, 16384),
        }
        if layer < 3:
            tensors |= mlp(f"{prefix}mlp", 18432)
            continue
        tensors |= {
            f"{prefix}mlp.gate.weight": ("BF16", (256, hidden)),
            f"{prefix}mlp.gate.e_score_correction_bias": ("F32", (256,)),
            **mlp(f"{prefix}mlp.shared_experts", 2048),
        }
        for expert in range(256):
            tensors |= mlp(f"{prefix}mlp.experts.{expert}", 2048)
    tensors |= {"model.norm.weight": ("BF16", (hidden,)), "lm_head.weight": ("BF16", (vocab, hidden))}
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": hidden,
        "num_hidden_layers": 61,
        "num_nextn_predict_layers": 1,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
    }
    return FullSize(tensors=tensors, config=config, file_count=163)


def write_sparse(folder: Path | str, model: FullSize) -> Path:
    """Write the headers, and files as long as they say; the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    files = list(_files(model))
    for number, names in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):06d}.safetensors" if len(files) > 1 else "model.safetensors"
        weight_map |= dict.fromkeys(names, name)
        _write_file(folder / name, {each: model.tensors[each] for each in names})
    if len(files) > 1:
        index = {"metadata": {"total_size": model.nbytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(model.config))
    return folder


def fill(folder: Path, names: Iterable[str], *, seed: int, chunk_bytes: int = 8 << 20) -> None:
    """Give tensors of `folder` values: bfloat16 numbers of about 0.02, the same stretch over and over."""
    import numpy as np

    values = np.random.default_rng(seed).standard_normal(chunk_bytes // 2, dtype=np.float32) * np.float32(0.02)
    block = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    wanted = set(names)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            for name in wanted & header.keys():
                assert header[name]["dtype"] == "BF16"
                begin, end = header[name]["data_offsets"]
                file.seek(8 + length + begin)
                for start in range(begin, end, len(block)):
                    file.write(block[: end - start])


def _files(model: FullSize) -> Iterable[list[str]]:
    """Names by file, in order, each file with about as many bytes."""
    share, filled, names = model.nbytes / model.file_count, 0, []
    number = 1
    for name, entry in model.tensors.items():
        names.append(name)
        filled += _nbytes(*entry)
        if filled >= number * share and number < model.file_count:
            yield names
            names, number = [], number + 1
    yield names


def _write_file(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (code, shape) in sorted(tensors.items(), key=lambda item: -_BYTES[item[1][0]]):
        end = begin + _nbytes(code, shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        os.truncate(file.fileno(), 8 + len(text) + begin)


def _nbytes(code: str, shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count * _BYTES[code]
