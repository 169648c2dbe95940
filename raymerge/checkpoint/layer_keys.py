"""Keys of config.json that speak of single layers, and what becomes of them when layers are cut or repeated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Kept = tuple[int, ...]

# Lists of layer numbers. Examples: Jamba and Bamba, Qwen3-MoE, Llama 4, Mllama, LFM2, Zamba2, Hymba, Qwen2.5-VL.
_NUMBERS = re.compile(
    r"(?:.*_(?:indices|indexes|idxs?|layer_ids))|mlp_only_layers|moe_layers|cross_attention_layers|global_layers"
)
# One entry per layer, by name: layer_types, layers_block_type, no_rope_layers, sliding_window_pattern, moe_layer_freq,
# attention_layers, attn_type_list, block_configs, activation_sparsity_pattern, and sizes that differ per layer
# (OpenELM's num_query_heads, Gemma 3n's intermediate_size).
_PER_LAYER = re.compile(
    r".*(?:layer|block|pattern|attn_type|attention_type).*"
    r"|num_(?:query|kv|attention|key_value)_heads|intermediate_sizes?|ffn_multipliers|hidden_sizes_per_layer|sliding_window"
)
# Lists that have nothing to do with layers, whatever their length.
_UNRELATED = re.compile(
    r"architectures|.*token_ids?|.*_tokens|languages|.*section|.*_size|.*_sizes|.*_mean|.*_std|.*_resolutions?|"
    r"kernel.*|conv_.*|dilation.*|pruned_heads|keys_to_ignore.*|time_step.*|.*_labels|.*_range"
)
_TYPES = re.compile(r".*layers?_.*types?|no_rope_layers")
_STRINGS = frozenset({"hybrid_override_pattern"})  # Nemotron-H: one letter per layer
# "The first k layers are ...": DeepSeek's dense layers, Qwen2's full attention below max_window_layers.
_LEADING = frozenset({"first_k_dense_replace", "num_dense_layers", "n_dense_layers", "max_window_layers"})
_TRAILING = frozenset({"num_kv_shared_layers"})  # Gemma 3n: the last k layers share keys and values
_EXTRA = frozenset({"num_nextn_predict_layers", "mtp_num_hidden_layers"})
# "Every k-th layer is ...", counted from the layer's number.
_PERIODS = frozenset(
    {
        "attn_layer_period", "expert_layer_period", "full_attention_interval", "sliding_window_pattern",
        "decoder_sparse_step", "moe_layer_freq", "moe_layer_interval", "interleave_moe_layer_step",
        "global_attn_every_n_layers", "cross_attention_interval", "no_rope_layer_interval",
    }
)  # fmt: skip
_COVERED_BY_TYPES = frozenset(
    {"full_attention_interval", "sliding_window_pattern", "global_attn_every_n_layers", "max_window_layers"}
)
_PERIOD_OF_MODEL = {"gemma2": 2}  # local and global attention alternate without a key that says so
_FEWEST_FOR_LENGTH_ALONE = 4  # shorter lists of an unknown name agree with the layer count by chance


def cut_value(name: str, value: Any, layers: int, kept: Kept, extra_layers: int) -> Any:
    """The value of `name` once the stack of `layers` holds the layers `kept`; unchanged if it speaks of no layer.

    `extra_layers` further entries (next-n layers) behind those of the stack are dropped.
    """
    if isinstance(value, list):
        return _cut_list(name, value, layers, kept, extra_layers)
    if name in _STRINGS and isinstance(value, str) and len(value) == layers:
        return "".join(value[index] for index in kept)
    return _cut_count(name, value, layers, kept) if _is_int(value) else value


def _cut_list(name: str, value: list[Any], layers: int, kept: Kept, extra_layers: int) -> list[Any]:
    if name == "attention_types":
        return _cut_attention_types(value, layers, kept)
    if _NUMBERS.fullmatch(name):
        return _renumber(value, layers, kept)
    return [value[index] for index in kept] if is_per_layer(name, value, layers, extra_layers) else value


def _cut_count(name: str, value: int, layers: int, kept: Kept) -> int:
    if name in _EXTRA:
        return 0
    if name in _LEADING:
        return _leading(value, kept)
    return _leading(value, _from_the_end(layers, kept)) if name in _TRAILING else value


def is_per_layer(name: str, value: Any, layers: int, extra_layers: int = 0) -> bool:
    """Whether `value` is a list with an entry for each layer, by its name, or by its length if the name is unknown."""
    if not isinstance(value, list) or len(value) not in (layers, layers + extra_layers) or _NUMBERS.fullmatch(name):
        return False
    by_length = layers >= _FEWEST_FOR_LENGTH_ALONE and not _UNRELATED.fullmatch(name)
    return by_length or _PER_LAYER.fullmatch(name) is not None


def doubt(name: str, value: Any, section: Mapping[str, Any], layers: int, kept: Kept) -> str:
    """Why `cut_value` cannot keep the meaning of `name`; "" where it can. `section` holds the keys beside it."""
    if name == "model_type":
        period = _PERIOD_OF_MODEL.get(value) if "layer_types" not in section else None
        return _period_doubt(period, kept) if period else ""
    if isinstance(value, list):
        return _list_doubt(name, value, layers)
    return _count_doubt(name, value, section, layers, kept) if _is_int(value) else ""


def _list_doubt(name: str, value: list[Any], layers: int) -> str:
    if _NUMBERS.fullmatch(name) and not _is_numbers(value, layers):
        return "holds numbers that are no layers; it was left as it is"
    if _TYPES.fullmatch(name) and value and len(value) < layers:
        return f"has {len(value)} entries for {layers} layers; it was left as it is"
    return ""


def _count_doubt(name: str, value: int, section: Mapping[str, Any], layers: int, kept: Kept) -> str:
    if name in _LEADING and not _is_prefix(value, kept) and not _is_idle(name, section):
        return f"says that the first {value} layers are of another kind; some of them now follow later ones"
    if name in _TRAILING and not _is_prefix(value, _from_the_end(layers, kept)):
        return f"says that the last {value} layers are of another kind; some of them now stand before others"
    return _period_doubt(value, kept) if name in _PERIODS and not _is_idle(name, section) else ""


def _is_idle(name: str, section: Mapping[str, Any]) -> bool:
    """Whether the key decides nothing here: lists say it already, or what it governs is switched off."""
    if isinstance(section.get("layer_types"), list):
        return name in _COVERED_BY_TYPES
    return name == "max_window_layers" and not section.get("use_sliding_window")


def _is_int(value: object) -> bool:
    return type(value) is int


def _leading(count: int, kept: Kept) -> int:
    """How many kept layers, from the first on, are among the first `count`."""
    return next((position for position, index in enumerate(kept) if index >= count), len(kept))


def _is_prefix(count: int, kept: Kept) -> bool:
    """Whether the kept layers below `count` all come first."""
    return all(index >= count for index in kept[_leading(count, kept) :])


def _from_the_end(layers: int, kept: Kept) -> Kept:
    """The kept layers seen from the last one."""
    return tuple(layers - 1 - index for index in reversed(kept))


def _period_doubt(period: int, kept: Kept) -> str:
    if period < 2 or all(position % period == index % period for position, index in enumerate(kept)):
        return ""
    return f"every {period} layers the kind changes; some layers now stand at a place of another kind"


def _is_numbers(value: list[Any], layers: int) -> bool:
    return all(_is_int(index) and 0 <= index < layers for index in value)


def _renumber(value: list[Any], layers: int, kept: Kept) -> list[Any]:
    if not _is_numbers(value, layers):
        return value
    named = set(value)
    return [position for position, index in enumerate(kept) if index in named]


def _cut_attention_types(value: list[Any], layers: int, kept: Kept) -> list[Any]:
    """GPT-Neo's [[["global", "local"], 12]]: kinds in turn, and how often."""
    try:
        kinds = [kind for turn, times in value for _ in range(times) for kind in turn]
    except (TypeError, ValueError):
        return value
    return [[[kinds[index] for index in kept], 1]] if len(kinds) == layers else value
