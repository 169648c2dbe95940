"""Tiny random models of many architectures, made and saved by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYERS = 4
_VOCAB, _HIDDEN = 96, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to make a model of LAYERS layers: the class that loads it, its config's type and what is set in it.

    `stacks` are the prefixes of its stacks of layers, as the files name them; `count_keys` where config.json counts
    them. `parts` are the prefixes of whatever else it has, for models of several stacks.
    """

    auto: str
    model_type: str
    settings: Mapping[str, Any]
    stacks: tuple[str, ...] = ("model.layers",)
    count_keys: tuple[str, ...] = ("num_hidden_layers",)
    parts: tuple[str, ...] = ()
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_common: bool = False


_TEXT: dict[str, Any] = {
    "vocab_size": _VOCAB,
    "hidden_size": _HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 16,
}
_TEXT_WITHOUT_WINDOW = {key: value for key, value in _TEXT.items() if key not in ("sliding_window", "head_dim")}
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_CAUSAL = "AutoModelForCausalLM"

FAMILIES: dict[str, Family] = {
    "llama": Family(auto=_CAUSAL, model_type="llama", settings=_TEXT_WITHOUT_WINDOW, is_common=True),
    "mistral": Family(auto=_CAUSAL, model_type="mistral", settings=_TEXT),
    "qwen2": Family(
        auto=_CAUSAL, model_type="qwen2",
        settings={**_TEXT_WITHOUT_WINDOW, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 16,
                  "max_window_layers": 2},
    ),
    "qwen3": Family(auto=_CAUSAL, model_type="qwen3", settings=_TEXT, is_common=True),
    "gemma2": Family(auto=_CAUSAL, model_type="gemma2", settings={**_TEXT, "query_pre_attn_scalar": 8}),
    "gemma3": Family(
        auto=_CAUSAL, model_type="gemma3_text",
        settings={**_TEXT, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "gemma3 multimodal": Family(
        auto="AutoModelForImageTextToText", model_type="gemma3",
        settings={"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92},
        sections={
            "text_config": {**_TEXT, "layer_types": ["sliding_attention", "full_attention"] * 2},
            "vision_config": _VISION,
        },
        stacks=("language_model.model.layers", "model.language_model.layers"),
        count_keys=("text_config.num_hidden_layers",),
        is_common=True,
    ),
    "phi3": Family(
        auto=_CAUSAL, model_type="phi3", settings={**_TEXT_WITHOUT_WINDOW, "original_max_position_embeddings": 64},
    ),
    "mixtral": Family(
        auto=_CAUSAL, model_type="mixtral", settings={**_TEXT, "num_local_experts": 4, "num_experts_per_tok": 2},
        is_common=True,
    ),
    "qwen3 moe": Family(
        auto=_CAUSAL, model_type="qwen3_moe",
        settings={**_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                  "mlp_only_layers": [0]},
    ),
    "deepseek v3": Family(
        auto=_CAUSAL, model_type="deepseek_v3",
        settings={**_TEXT_WITHOUT_WINDOW, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4,
                  "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "kv_lora_rank": 8,
                  "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
                  "first_k_dense_replace": 1},
        is_common=True,
    ),
    "gpt2": Family(
        auto=_CAUSAL, model_type="gpt2",
        settings={**_SPECIAL, "vocab_size": _VOCAB, "n_embd": _HIDDEN, "n_layer": LAYERS, "n_head": 4,
                  "n_positions": 64},
        stacks=("transformer.h",), count_keys=("n_layer",),
    ),
    "gpt neox": Family(
        auto=_CAUSAL, model_type="gpt_neox",
        settings={key: value for key, value in _TEXT_WITHOUT_WINDOW.items() if key != "num_key_value_heads"},
        stacks=("gpt_neox.layers",),
    ),
    "mamba": Family(
        auto=_CAUSAL, model_type="mamba",
        settings={**_SPECIAL, "vocab_size": _VOCAB, "hidden_size": _HIDDEN, "num_hidden_layers": LAYERS,
                  "state_size": 4},
        stacks=("backbone.layers",),
    ),
    "bert": Family(
        auto="AutoModel", model_type="bert",
        settings={key: _TEXT[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                              "num_attention_heads", "max_position_embeddings", "pad_token_id")},
        stacks=("encoder.layer",), is_common=True,
    ),
    "t5": Family(
        auto="AutoModelForSeq2SeqLM", model_type="t5",
        settings={"vocab_size": _VOCAB, "d_model": _HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS,
                  "num_decoder_layers": LAYERS, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0,
                  "eos_token_id": 1},
        stacks=("encoder.block", "decoder.block"), count_keys=("num_layers", "num_decoder_layers"), parts=("shared",),
    ),
    "whisper": Family(
        auto="AutoModelForSpeechSeq2Seq", model_type="whisper",
        settings={**_SPECIAL, "vocab_size": _VOCAB, "d_model": _HIDDEN, "encoder_layers": LAYERS,
                  "decoder_layers": LAYERS,
                  "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                  "decoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32,
                  "decoder_start_token_id": 1, "suppress_tokens": [], "begin_suppress_tokens": []},
        stacks=("model.encoder.layers", "model.decoder.layers"), count_keys=("encoder_layers", "decoder_layers"),
    ),
}  # fmt: skip


def write_tiny(folder: Path, family: Family, *, seed: int, **saving: Any) -> Path:
    """Save a model of random weights; every value is drawn, norms and biases too, so that none is alike by default.

    `saving` goes to save_pretrained.
    """
    import torch
    import transformers

    settings = dict(family.settings) | {name: dict(values) for name, values in family.sections.items()}
    config = transformers.AutoConfig.for_model(family.model_type, **settings)
    torch.manual_seed(seed)
    model = getattr(transformers, family.auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, **saving)
    return folder


def run_tiny(model: Any, family: Family) -> Any:
    """What the model makes of a short input: tokens generated, or states."""
    import torch

    tokens = torch.tensor([[5, 6, 7, 8]])
    if family.auto == "AutoModelForSpeechSeq2Seq":
        return model.generate(input_features=torch.randn(1, 8, 32), max_new_tokens=4, do_sample=False)
    if family.auto == "AutoModelForImageTextToText":
        tokens = torch.tensor([[5, 91, 90, 90, 90, 90, 92, 6]])
        images = torch.randn(1, 3, 28, 28)
        return model.generate(tokens, pixel_values=images, token_type_ids=(tokens == 90).long(), max_new_tokens=4)
    if family.auto == "AutoModel":
        return model(tokens).last_hidden_state
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
