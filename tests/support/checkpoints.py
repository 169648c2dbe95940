"""Small checkpoints for tests, written with numpy alone, quickly and without a network.

Every maker returns its folder. `delta_of` makes a fine-tune: that checkpoint's tensors plus seeded noise, rounded to
`dtype`. Weights depend on the seed and the tensor's name only.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_NUMPY: dict[str, Any] = {
    "F16": np.float16, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_,
    "U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64,
}  # fmt: skip


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even; the bits as uint16. NaN is not handled."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(array: np.ndarray, code: str) -> bytes:
    """The bytes of `array` stored as safetensors dtype `code`; uint8 arrays of F8 codes are taken as they are."""
    if code == "BF16":
        return to_bfloat16(array).tobytes()
    if code.startswith("F8"):
        return array.astype(np.uint8).tobytes()
    return np.ascontiguousarray(array.astype(_NUMPY[code])).tobytes()


def decode(data: bytes, code: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values; bfloat16 comes as float32."""
    if code == "BF16":
        return from_bfloat16(np.frombuffer(data, np.uint16)).reshape(shape)
    return np.frombuffer(data, _NUMPY[code]).reshape(shape)


def _itemsize(code: str) -> int:
    return 2 if code == "BF16" else 1 if code.startswith("F8") else np.dtype(_NUMPY[code]).itemsize


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[np.ndarray, str]], metadata: Mapping[str, str] | None = None
) -> int:
    """Write arrays with their dtype codes, in the order given; returns the bytes of data."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    parts = []
    begin = 0
    for name, (array, code) in tensors.items():
        data = encode(array, code)
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [begin, begin + len(data)]}
        parts.append(data)
        begin += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    return begin


def write_weights(
    folder: Path, arrays: Arrays, codes: str | Mapping[str, str], *, shard_bytes: int | None = None
) -> None:
    """Write `arrays` in their order: `model.safetensors`, or shards of at most `shard_bytes` with an index."""
    code_of = dict.fromkeys(arrays, codes) if isinstance(codes, str) else codes
    folder.mkdir(parents=True, exist_ok=True)
    if shard_bytes is None:
        write_safetensors(folder / "model.safetensors", {name: (arrays[name], code_of[name]) for name in arrays})
        return
    shards: list[dict[str, tuple[np.ndarray, str]]] = [{}]
    room = shard_bytes
    for name, array in arrays.items():
        nbytes = array.size * _itemsize(code_of[name])
        if shards[-1] and nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = (array, code_of[name])
        room -= nbytes
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += write_safetensors(folder / file_name, shard)
        weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def read_tensors(folder: Path) -> Arrays:
    """Every tensor of a folder's safetensors files, in file order; bfloat16 comes as float32."""
    arrays: Arrays = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = (start + offset for offset in entry["data_offsets"])
            arrays[name] = decode(content[begin:end], entry["dtype"], tuple(entry["shape"]))
    return arrays


def random_arrays(shapes: Shapes, *, seed: int, scale: float = 0.02) -> Arrays:
    """float32 normals; norms (one-dimensional weights) lie around 1."""
    arrays = {}
    for name, shape in shapes.items():
        values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        arrays[name] = values * np.float32(scale) + np.float32(len(shape) == 1 and name.endswith("norm.weight"))
    return arrays


def _values(shapes: Shapes, *, seed: int, delta_of: Path | None, delta_scale: float) -> Arrays:
    if delta_of is None:
        return random_arrays(shapes, seed=seed)
    base = read_tensors(Path(delta_of))
    noise = random_arrays(shapes, seed=seed, scale=delta_scale)
    return {
        name: base[name] + noise[name] - np.float32(len(shape) == 1 and name.endswith("norm.weight"))
        for name, shape in shapes.items()
    }


def llama_shapes(
    *, layers: int, hidden: int, heads: int, vocab: int, intermediate: int | None = None, kv_heads: int | None = None,
    tie: bool = False,
) -> Shapes:  # fmt: skip
    """Names and shapes in the order that transformers saves them."""
    inner = intermediate or 2 * hidden
    kv = (kv_heads or heads) * (hidden // heads)
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv, hidden),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not tie:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def llama_config(
    *, layers: int, hidden: int, heads: int, vocab: int, intermediate: int | None = None, kv_heads: int | None = None,
    tie: bool = False, dtype: str = "bfloat16",
) -> dict[str, Any]:  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate or 2 * hidden,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads or heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tie,
        "torch_dtype": dtype,
        "transformers_version": "4.46.0",
        "use_cache": True,
        "vocab_size": vocab,
    }


def write_llama(
    folder: Path | str,
    *,
    layers: int = 4,
    hidden: int = 32,
    heads: int = 4,
    vocab: int = 64,
    intermediate: int | None = None,
    kv_heads: int | None = None,
    seed: int = 0,
    dtype: str = "bfloat16",
    shard_bytes: int | None = None,
    tie: bool = False,
    delta_of: Path | str | None = None,
    delta_scale: float = 0.005,
    tokenizer: bool = True,
    chat_template: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A Llama that transformers loads. `config` replaces keys of config.json."""
    folder = Path(folder)
    shape = {
        "layers": layers, "hidden": hidden, "heads": heads, "vocab": vocab, "intermediate": intermediate,
        "kv_heads": kv_heads, "tie": tie,
    }  # fmt: skip
    base = Path(delta_of) if delta_of is not None else None
    arrays = _values(llama_shapes(**shape), seed=seed, delta_of=base, delta_scale=delta_scale)
    write_weights(folder, arrays, CODES[dtype], shard_bytes=shard_bytes)
    write_config(folder, llama_config(**shape, dtype=dtype) | dict(config or {}))
    if tokenizer:
        write_tokenizer(folder, vocab=vocab, chat_template=chat_template)
    return folder


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    generation = {"_from_model_config": True, **ids, "transformers_version": "4.46.0"}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def write_tokenizer(folder: Path, *, vocab: int, chat_template: str | None = None) -> None:
    """A word-level tokenizer of `vocab` entries: <unk>, <s>, </s>, then w3, w4, ..."""
    specials = ["<unk>", "<s>", "</s>"]
    tokens = specials + [f"w{index}" for index in range(len(specials), vocab)]
    added = [
        {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for index, token in enumerate(specials)
    ]  # fmt: skip
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(zip(tokens, range(vocab), strict=True)), "unk_token": "<unk>"},
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False, "model_max_length": 512,
    }  # fmt: skip
    if chat_template is not None:
        settings["chat_template"] = chat_template
    specials_map = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for name, content in (
        ("tokenizer.json", document), ("tokenizer_config.json", settings), ("special_tokens_map.json", specials_map),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def deepseek_shapes(*, layers: int, hidden: int, vocab: int, experts: int, next_n: int = 1) -> Shapes:
    """DeepSeek-V3's names: a dense first layer, routed experts behind it, `next_n` extra layers numbered on."""
    heads, nope, rope, value, q_rank, kv_rank, inner, moe = 4, 8, 4, 8, 16, 8, 2 * hidden, hidden // 2
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}

    def mlp(prefix: str, size: int) -> Shapes:
        return {
            f"{prefix}gate_proj.weight": (size, hidden),
            f"{prefix}up_proj.weight": (size, hidden),
            f"{prefix}down_proj.weight": (hidden, size),
        }

    for layer in range(layers + next_n):
        prefix = f"model.layers.{layer}."
        if layer >= layers:
            shapes |= {
                f"{prefix}embed_tokens.weight": (vocab, hidden),
                f"{prefix}enorm.weight": (hidden,),
                f"{prefix}hnorm.weight": (hidden,),
                f"{prefix}eh_proj.weight": (hidden, 2 * hidden),
            }
        shapes |= {
            f"{prefix}self_attn.q_a_proj.weight": (q_rank, hidden),
            f"{prefix}self_attn.q_a_layernorm.weight": (q_rank,),
            f"{prefix}self_attn.q_b_proj.weight": (heads * (nope + rope), q_rank),
            f"{prefix}self_attn.kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
            f"{prefix}self_attn.kv_a_layernorm.weight": (kv_rank,),
            f"{prefix}self_attn.kv_b_proj.weight": (heads * (nope + value), kv_rank),
            f"{prefix}self_attn.o_proj.weight": (hidden, heads * value),
        }
        if layer == 0:
            shapes |= mlp(f"{prefix}mlp.", inner)
        else:
            shapes |= {
                f"{prefix}mlp.gate.weight": (experts, hidden),
                f"{prefix}mlp.gate.e_score_correction_bias": (experts,),
            }
            shapes |= mlp(f"{prefix}mlp.shared_experts.", moe)
            for expert in range(experts):
                shapes |= mlp(f"{prefix}mlp.experts.{expert}.", moe)
        shapes |= {f"{prefix}input_layernorm.weight": (hidden,), f"{prefix}post_attention_layernorm.weight": (hidden,)}
        if layer >= layers:
            shapes |= {
                f"{prefix}shared_head.norm.weight": (hidden,),
                f"{prefix}shared_head.head.weight": (vocab, hidden),
            }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def write_deepseek(
    folder: Path | str,
    *,
    layers: int = 3,
    hidden: int = 32,
    vocab: int = 64,
    experts: int = 4,
    next_n: int = 1,
    seed: int = 0,
    dtype: str = "bfloat16",
    shard_bytes: int | None = None,
    delta_of: Path | str | None = None,
    delta_scale: float = 0.005,
    tokenizer: bool = True,
) -> Path:
    """A DeepSeek-V3-shaped mixture of experts; router biases are float32, as published."""
    folder = Path(folder)
    shapes = deepseek_shapes(layers=layers, hidden=hidden, vocab=vocab, experts=experts, next_n=next_n)
    base = Path(delta_of) if delta_of is not None else None
    arrays = _values(shapes, seed=seed, delta_of=base, delta_scale=delta_scale)
    codes = {name: "F32" if name.endswith("e_score_correction_bias") else CODES[dtype] for name in arrays}
    write_weights(folder, arrays, codes, shard_bytes=shard_bytes)
    write_config(
        folder,
        {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "bos_token_id": 1,
            "eos_token_id": 2, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": hidden,
            "intermediate_size": 2 * hidden, "kv_lora_rank": 8, "max_position_embeddings": 512,
            "moe_intermediate_size": hidden // 2, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": experts,
            "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 4, "num_experts_per_tok": 2,
            "num_hidden_layers": layers, "num_key_value_heads": 4, "num_nextn_predict_layers": next_n,
            "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "rms_norm_eps": 1e-06,
            "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
            "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": dtype,
            "transformers_version": "4.46.0", "use_cache": True, "v_head_dim": 8, "vocab_size": vocab,
        },
    )  # fmt: skip
    if tokenizer:
        write_tokenizer(folder, vocab=vocab)
    return folder


def bert_shapes(*, layers: int, hidden: int, vocab: int, positions: int = 64) -> Shapes:
    shapes: Shapes = {
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.word_embeddings.weight": (vocab, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    inner = 2 * hidden

    def linear(name: str, rows: int, columns: int) -> Shapes:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            shapes |= linear(f"{prefix}attention.self.{part}", hidden, hidden)
        shapes |= linear(f"{prefix}attention.output.dense", hidden, hidden)
        shapes |= {f"{prefix}attention.output.LayerNorm.{part}": (hidden,) for part in ("weight", "bias")}
        shapes |= linear(f"{prefix}intermediate.dense", inner, hidden)
        shapes |= linear(f"{prefix}output.dense", hidden, inner)
        shapes |= {f"{prefix}output.LayerNorm.{part}": (hidden,) for part in ("weight", "bias")}
    return shapes | linear("pooler.dense", hidden, hidden)


def write_bert(
    folder: Path | str,
    *,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 64,
    seed: int = 0,
    dtype: str = "float32",
    shard_bytes: int | None = None,
    delta_of: Path | str | None = None,
    delta_scale: float = 0.005,
    position_ids: bool = True,
) -> Path:
    """A BERT encoder with, as old checkpoints have it, an int64 `embeddings.position_ids` buffer."""
    folder = Path(folder)
    shapes = bert_shapes(layers=layers, hidden=hidden, vocab=vocab)
    base = Path(delta_of) if delta_of is not None else None
    arrays = _values(shapes, seed=seed, delta_of=base, delta_scale=delta_scale)
    codes = dict.fromkeys(arrays, CODES[dtype])
    if position_ids:
        arrays = {"embeddings.position_ids": np.arange(64).reshape(1, 64)} | arrays
        codes["embeddings.position_ids"] = "I64"
    write_weights(folder, arrays, codes, shard_bytes=shard_bytes)
    write_config(
        folder,
        {
            "architectures": ["BertModel"], "model_type": "bert", "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": hidden, "initializer_range": 0.02,
            "intermediate_size": 2 * hidden, "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
            "num_attention_heads": 4, "num_hidden_layers": layers, "pad_token_id": 0, "torch_dtype": dtype,
            "transformers_version": "4.8.2", "type_vocab_size": 2, "vocab_size": vocab,
        },
    )  # fmt: skip
    return folder
