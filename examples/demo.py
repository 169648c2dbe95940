"""Make three small Llama-shaped checkpoints with a fixed seed and merge them with TIES: `make demo`.

Weights are random, so the result says nothing sensible; everything else is as with real models.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np

LAYERS, HIDDEN, INNER, HEADS, VOCABULARY = 8, 256, 704, 8, 4096
EXPERTS = ("writer", "coder")
RECIPE = """\
merge_method: ties
base_model: {folder}/base
models:
  - model: {folder}/writer
    parameters: {{weight: 0.6, density: 0.5}}
  - model: {folder}/coder
    parameters: {{weight: 0.4, density: 0.5}}
dtype: bfloat16
"""


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    base = random_weights(seed=0, scale=0.02)
    write_checkpoint(folder / "base", base)
    for seed, name in enumerate(EXPERTS, start=1):
        change = random_weights(seed=seed, scale=0.002)
        write_checkpoint(folder / name, {key: base[key] + change[key] for key in base})
    local = folder if folder.is_absolute() else f"./{folder}"  # "demo/base" alone could name a model on the hub
    (folder / "config.yaml").write_text(RECIPE.format(folder=local))
    shutil.rmtree(folder / "merged", ignore_errors=True)  # an earlier demo's; a merge into it would find it complete

    for command in (
        f"raymerge plan {folder}/config.yaml {folder}/merged --out-shard-size 8MB",
        f"raymerge merge {folder}/config.yaml {folder}/merged --out-shard-size 8MB",
        f"raymerge verify {folder}/merged",
    ):
        print(f"\n$ {command}", flush=True)
        result = subprocess.run([sys.executable, "-m", *command.split()], check=False)
        if result.returncode != 0:
            return result.returncode

    print(f"\nmade {folder}/merged:")
    for path in sorted((folder / "merged").iterdir()):
        print(f"  {path.stat().st_size:>10,}  {path.name}")
    again = f".venv/bin/raymerge merge {folder}/config.yaml {folder}/merged --out-shard-size 8MB"
    print(
        "\nto look at it",
        f"  the model card, with the recipe    cat {folder}/merged/README.md",
        "  what TIES does                     .venv/bin/raymerge methods ties",
        f"  finds every shard, writes none     {again}",
        f'  load it with transformers          AutoModelForCausalLM.from_pretrained("{folder}/merged")',
        sep="\n",
    )
    return 0


def random_weights(*, seed: int, scale: float) -> dict[str, np.ndarray]:
    """float32 normals that depend on the seed and the tensor's name."""
    return {
        name: np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32) * scale
        for name, shape in shapes().items()
    }


def shapes() -> dict[str, tuple[int, ...]]:
    of: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        of |= {f"{prefix}.{norm}_layernorm.weight": (HIDDEN,) for norm in ("input", "post_attention")}
        of |= {f"{prefix}.self_attn.{kind}_proj.weight": (HIDDEN, HIDDEN) for kind in "qkvo"}
        of |= {f"{prefix}.mlp.{kind}_proj.weight": (INNER, HIDDEN) for kind in ("gate", "up")}
        of[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    return of | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def bfloat16_bytes(values: np.ndarray) -> bytes:
    """Round to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def write_checkpoint(folder: Path, weights: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", {name: bfloat16_bytes(array) for name, array in weights.items()})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    specials = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *(f"w{i}" for i in range(3, VOCABULARY))])}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
            for i, token in enumerate(specials)
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    write_json(folder / "tokenizer.json", tokenizer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    """The format: the header's length, a JSON header, then each tensor's bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shapes()[name], "data_offsets": [begin, begin + len(data)]}
        begin += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors.values()))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if sys.argv[1:] else "demo")))
