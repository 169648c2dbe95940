"""Make Llama-shaped bfloat16 checkpoints of any size: a base and fine-tunes a few bfloat16 grid steps away from it.

    python -m benchmarks.make_checkpoints bench-data/1b --shape 1b --fine-tunes 3

Weights are seeded noise; only sizes, types and the grid of the task vectors matter to a benchmark. The same arguments
give the same bytes. A folder that is complete is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

CHUNK_ELEMENTS = 1 << 22  # 16 MiB of float32: a few fit in memory at once, and a call's overhead vanishes
DELTA_SCALE = 0.001  # against weights of 0.02: some 5%, so that most entries move by a few bfloat16 steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-shaped model."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int


SHAPES = {
    "1b": Shape(hidden=2048, inner=5632, layers=22, heads=32, kv_heads=4, vocab=32000),  # TinyLlama 1.1B
    "100m": Shape(hidden=768, inner=2048, layers=12, heads=12, kv_heads=4, vocab=32000),
    "tiny": Shape(hidden=64, inner=176, layers=4, heads=4, kv_heads=2, vocab=512),
}


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    kv = shape.hidden // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (shape.hidden,)
        yield prefix + "self_attn.q_proj.weight", (shape.hidden, shape.hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, shape.hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, shape.hidden)
        yield prefix + "self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield prefix + "post_attention_layernorm.weight", (shape.hidden,)
        yield prefix + "mlp.gate_proj.weight", (shape.inner, shape.hidden)
        yield prefix + "mlp.up_proj.weight", (shape.inner, shape.hidden)
        yield prefix + "mlp.down_proj.weight", (shape.hidden, shape.inner)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocab, shape.hidden)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits, to nearest-even."""
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def header_of(shape: Shape) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The safetensors header with its length in front, and each tensor's (offset in the file, element count)."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dims in tensor_shapes(shape):
        end = offset + 2 * int(np.prod(dims))
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    places = {}
    for name, dims in tensor_shapes(shape):
        first = entries[name]["data_offsets"][0]  # type: ignore[index]
        places[name] = (8 + len(text) + first, int(np.prod(dims)))
    return struct.pack("<Q", len(text)) + text, places


def write_chunk(files: list[int], seed: int, place: int, count: int) -> None:
    """Write `count` elements at byte `place` of every model's file: the base first."""
    random = np.random.Generator(np.random.SFC64([seed, place]))
    base = random.standard_normal(count, np.float32)
    base *= np.float32(0.02)
    bits = to_bf16(base)
    os.pwrite(files[0], bits, place)
    base = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    for file in files[1:]:
        tuned = random.standard_normal(count, np.float32)
        tuned *= np.float32(DELTA_SCALE)
        tuned += base
        os.pwrite(file, to_bf16(tuned), place)


def config_json(shape: Shape) -> str:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    return json.dumps(config, indent=2)


def make_checkpoints(folder: Path, shape: Shape, *, fine_tunes: int, seed: int, threads: int) -> list[Path]:
    """Folders `base`, `a`, `b`, ... below `folder`; made anew unless a finished set of the same kind is there."""
    paths = [folder / name for name in ("base", *"abcdefghijklmnop"[:fine_tunes])]
    wanted = {"shape": asdict(shape), "fine_tunes": fine_tunes, "seed": seed}
    stamp = folder / "made.json"
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return paths
    stamp.unlink(missing_ok=True)
    header, places = header_of(shape)
    files = []
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(config_json(shape))
        files.append(os.open(path / "model.safetensors", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644))
        os.pwrite(files[-1], header, 0)
    with ThreadPoolExecutor(threads) as pool:
        chunks = [
            pool.submit(write_chunk, files, seed, place + 2 * start, min(CHUNK_ELEMENTS, count - start))
            for place, count in places.values()
            for start in range(0, count, CHUNK_ELEMENTS)
        ]
        for chunk in chunks:
            chunk.result()
    for file in files:
        os.close(file)
    stamp.write_text(json.dumps(wanted))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--fine-tunes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    for field in Shape.__dataclass_fields__:
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, help=f"in place of the shape's {field}")
    options = parser.parse_args()
    sizes = asdict(SHAPES[options.shape])
    sizes.update({field: value for field in sizes if (value := getattr(options, field)) is not None})
    paths = make_checkpoints(
        options.folder, Shape(**sizes), fine_tunes=options.fine_tunes, seed=options.seed, threads=options.threads
    )
    size = (paths[0] / "model.safetensors").stat().st_size
    print(f"{len(paths)} checkpoints of {size / 1e9:.2f} GB in {options.folder}")


if __name__ == "__main__":
    main()
