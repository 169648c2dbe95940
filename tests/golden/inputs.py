"""The small Llama-shaped checkpoints that the golden outputs were made from, regenerated from a seed with numpy alone.

Values come from raw generator bits and IEEE additions, so they do not depend on numpy's choice of distributions.
Models: `base` and its fine-tunes `a`, `b`, `c` (float32, deltas half the size of the base and correlated with each
other); `near` (cosine with the base above 0.9995); the same four on the bfloat16 grid and stored as bfloat16, named
`base_bf16`, `a_bf16`, ... (their deltas lie on a grid, so magnitudes tie).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-shaped checkpoint."""

    layers: int
    hidden: int = 12
    inner: int = 14
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 14


SHAPES = {
    "core": Shape(layers=4),
    "more": Shape(layers=2),
    # sizes that four does not divide: the floors of counts and quantile indices show
    "odd": Shape(layers=1, hidden=18, inner=7, heads=3, kv_heads=1, vocab=11),
    # embeddings of 393,216 elements: several blocks, and a last one that is not full
    "wide": Shape(layers=1, hidden=96, inner=120, vocab=4100),
}
FINE_TUNES = ("a", "b", "c")


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    kv = shape.hidden // shape.heads * shape.kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (shape.hidden,)
        shapes[prefix + "self_attn.q_proj.weight"] = (shape.hidden, shape.hidden)
        shapes[prefix + "self_attn.k_proj.weight"] = (kv, shape.hidden)
        shapes[prefix + "self_attn.v_proj.weight"] = (kv, shape.hidden)
        shapes[prefix + "self_attn.o_proj.weight"] = (shape.hidden, shape.hidden)
        shapes[prefix + "post_attention_layernorm.weight"] = (shape.hidden,)
        shapes[prefix + "mlp.gate_proj.weight"] = (shape.inner, shape.hidden)
        shapes[prefix + "mlp.up_proj.weight"] = (shape.inner, shape.hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (shape.hidden, shape.inner)
    shapes["model.norm.weight"] = (shape.hidden,)
    shapes["lm_head.weight"] = (shape.vocab, shape.hidden)
    return shapes


def bell(seed: int, count: int) -> np.ndarray:
    """`count` float64 draws with mean 0 and standard deviation 1, bell-shaped (the sum of four uniform ones)."""
    raw = np.random.PCG64(seed).random_raw(4 * count).reshape(count, 4)
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (((uniform[:, 0] + uniform[:, 1]) + uniform[:, 2]) + uniform[:, 3] - 2.0) * 1.7320508075688772


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to nearest-even bfloat16, still as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def make_models(shape: Shape, *, seed: int = 20240601) -> dict[str, Tensors]:
    models: dict[str, Tensors] = {name: {} for name in ("base", *FINE_TUNES, "near")}
    for index, (name, dims) in enumerate(tensor_shapes(shape).items()):
        count = int(np.prod(dims))
        streams = [bell(seed + 100 * index + stream, count) for stream in range(5)]
        base = streams[0] + (4.0 if len(dims) == 1 else 0.0)  # norms sit away from zero
        shared = streams[1]
        models["base"][name] = base.astype(np.float32).reshape(dims)
        for fine_tune, own in zip(FINE_TUNES, streams[2:], strict=True):
            delta = 0.3 * shared + 0.4 * own
            models[fine_tune][name] = (base + delta).astype(np.float32).reshape(dims)
        models["near"][name] = (base + 0.01 * streams[2]).astype(np.float32).reshape(dims)
    for name in ("base", *FINE_TUNES):
        models[f"{name}_bf16"] = {tensor: _on_grid(models, name, tensor) for tensor in models[name]}
    return models


def _on_grid(models: Mapping[str, Tensors], name: str, tensor: str) -> np.ndarray:
    # deltas a sixteenth of the size: a few grid steps each, as after a short fine-tuning in bfloat16
    base = models["base"][tensor]
    return round_to_bf16(base + (models[name][tensor] - base) * np.float32(0.0625))


def config_json(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], *, bf16: bool = False) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    payload: list[bytes] = []
    offset = 0
    for name, array in tensors.items():
        data = (array.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes() if bf16 else array.tobytes()
        header[name] = {
            "dtype": "BF16" if bf16 else "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        payload.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(payload))


def write_models(folder: Path, shape: Shape) -> dict[str, Path]:
    """Write every model to a folder of its own below `folder`; returns the folders by model name."""
    paths = {}
    for name, tensors in make_models(shape).items():
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        bf16 = name.endswith("_bf16")
        write_safetensors(path / "model.safetensors", tensors, bf16=bf16)
        config = config_json(shape) | ({"torch_dtype": "bfloat16"} if bf16 else {})
        (path / "config.json").write_text(json.dumps(config, indent=1))
        paths[name] = path
    return paths


def read_safetensors(folder: Path) -> tuple[Tensors, dict[str, str]]:
    """All tensors of a checkpoint folder as float32 or float64, and their stored types by name."""
    tensors: Tensors = {}
    dtypes: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = _decode(content[first:end], entry["dtype"]).reshape(entry["shape"])
            dtypes[name] = entry["dtype"]
    return tensors, dtypes


def _decode(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    array = np.frombuffer(data, {"F32": np.float32, "F16": np.float16, "F64": np.float64}[dtype])
    return array.astype(np.float32) if dtype == "F16" else array
