"""What config.json says about a model's size, and the same config with another number of layers or element type.

No architecture is known by name beyond a few listed facts: keys decide. Unknown keys are always kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymerge.checkpoint.layer_keys import cut_value, doubt, is_per_layer
from raymerge.dtypes import DType
from raymerge.errors import CheckpointError, Problem

Path = tuple[str, ...]

# Spellings of one number: where a config holds several, they agree and change together.
_STACK_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers", "num_blocks", "depth",
)  # fmt: skip
_ENCODER_KEYS = ("encoder_layers", "num_encoder_layers")
_DECODER_KEYS = ("decoder_layers", "num_decoder_layers")
_LAYER_KEYS = _STACK_KEYS + _ENCODER_KEYS + _DECODER_KEYS
_HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "model_dim", "embed_dim", "dim", "hidden_dim")
_VOCAB_KEYS = ("vocab_size", "padded_vocab_size", "n_vocab")
_DTYPE_KEYS = ("dtype", "torch_dtype")
# Objects inside a config.json that describe no part of the network.
_NOT_TOWERS = frozenset(
    {
        "auto_map", "id2label", "label2id", "quantization_config", "compression_config", "rope_scaling",
        "rope_parameters", "task_specific_params", "generation_config", "speculative_config",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A stack of layers that the config counts. `path` leads to the count: ("text_config", "num_hidden_layers")."""

    path: Path
    layer_count: int
    hidden_size: int | None
    vocab_size: int | None


def towers(config: Mapping[str, Any]) -> tuple[Tower, ...]:
    """Every layer count in the config, the outermost first; spellings of one count are one tower."""
    return tuple(tower for path, section in _sections(config) for tower in _towers_of(path, section))


def hidden_sizes(config: Mapping[str, Any]) -> dict[Path, int]:
    """Hidden sizes by the path of the section that holds them; () is the top level."""
    return {path: size for path, section in _sections(config) if (size := _first(section, _HIDDEN_KEYS)) is not None}


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """The text model's vocabulary: the top level's, else the first nested one's."""
    return next((size for _, section in _sections(config) if (size := _first(section, _VOCAB_KEYS)) is not None), None)


def with_vocab_size(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """`config` for embeddings of `size` rows: wherever the text model's vocabulary is counted, nested sections too."""
    changed: dict[str, Any] = _copy(config)
    old = vocab_size(config)
    for _, section in _sections(changed):
        for key in _VOCAB_KEYS:
            if old is not None and section.get(key) == old:
                section[key] = size
    if old is None:
        text = changed.get("text_config")
        (text if isinstance(text, dict) else changed)[_VOCAB_KEYS[0]] = size
    return changed


def tie_word_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Whether the head shares the embedding; None where the config leaves it to the architecture's default."""
    values = [section["tie_word_embeddings"] for _, section in _sections(config) if "tie_word_embeddings" in section]
    return bool(values[0]) if values else None


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` for a head of its own: at the top level, and in every part that has a vocabulary or says otherwise.

    Without the key, architectures differ in what they do.
    """
    changed: dict[str, Any] = _copy(config)
    for path, section in _sections(changed):
        if not path or "tie_word_embeddings" in section or _first(section, _VOCAB_KEYS) is not None:
            section["tie_word_embeddings"] = False
    return changed


def with_layers(config: Mapping[str, Any], path: Path, kept: Sequence[int]) -> dict[str, Any]:
    """`config` for a stack of layers `kept`, numbers of the old stack that may repeat; `path` is the tower's.

    The count, every per-layer list and every list of layer numbers beside it are rewritten. Next-n layers are counted
    apart from the stack and are no part of it: their count becomes 0. A number past the old stack (a layer of a deeper
    model) takes the last layer's entries. `layer_doubts` names what this cannot express. Raises CheckpointError where
    the config has no such count.
    """
    changed: dict[str, Any] = _copy(config)
    section, key = _find(changed, path)
    old = section[key]
    kept = _within(kept, old)
    extra = _extra_layers(section)
    for name, value in section.items():
        section[name] = cut_value(name, value, old, kept, extra)
    for mirror, name in list(_same_counts(changed, section, key, old)):
        mirror[name] = len(kept)
    return changed


def layer_doubts(config: Mapping[str, Any], path: Path, kept: Sequence[int]) -> tuple[Problem, ...]:
    """Warnings for settings that the kept layers break: a period of layer types, a threshold between two ranges."""
    section, key = _find(config, path)
    layers = section[key]
    if tuple(kept) == tuple(range(layers)):
        return ()
    prefix = "".join(f"{part}." for part in path[:-1])
    inside = _within(kept, layers)
    found = [(name, doubt(name, value, section, layers, inside)) for name, value in section.items()]
    if inside != tuple(kept):
        message = f"layers from a deeper model took the entry of layer {layers - 1}, the last one here"
        found += [(name, message) for name, value in section.items() if is_per_layer(name, value, layers)]
    return tuple(
        Problem(subject=f"config.json {prefix}{name}", message=message, remedy="check this key of the output")
        for name, message in found
        if message
    )


def set_dtype(config: Mapping[str, Any], dtype: DType) -> dict[str, Any]:
    """`config` with its element type replaced, in the spelling it uses (`dtype`, `torch_dtype`), nested ones too.

    A nested vision or audio tower with a type of its own keeps it. Where no spelling is there, `torch_dtype` is added,
    which every version of transformers reads.
    """
    changed: dict[str, Any] = _copy(config)
    outer = next((config[key] for key in _DTYPE_KEYS if key in config), None)
    found = False
    for path, section in _sections(changed):
        for key in _DTYPE_KEYS:
            if key in section and (section[key] == outer or outer is None or not _is_sensory(path)):
                section[key] = dtype.recipe_name
                found = True
    if not found:
        changed["torch_dtype"] = dtype.recipe_name
    return changed


def _is_sensory(path: Path) -> bool:
    return any(kind in part for part in path for kind in ("vision", "visual", "audio", "speech"))


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _sections(config: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The config and every object nested in it that may describe a tower, depth first."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in _NOT_TOWERS:
            yield from _sections(value, (*path, key))


def _towers_of(path: Path, section: Mapping[str, Any]) -> Iterator[Tower]:
    sides: list[tuple[str, ...]] = [
        keys for keys in (_ENCODER_KEYS, _DECODER_KEYS) if _first(section, keys) is not None
    ]
    # A config that counts encoder and decoder says one of them again as num_hidden_layers (Whisper, BART); one that
    # counts only its decoder so (T5's num_decoder_layers) has its encoder under the plain name.
    if len(sides) < 2:
        sides = [_STACK_KEYS, *sides]
    for keys in sides:
        key = next((key for key in keys if _is_count(section.get(key))), None)
        if key is not None:
            yield Tower(
                path=(*path, key),
                layer_count=section[key],
                hidden_size=_first(section, _HIDDEN_KEYS),
                vocab_size=_first(section, _VOCAB_KEYS),
            )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _first(section: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    return next((section[key] for key in keys if _is_count(section.get(key))), None)


def _within(kept: Sequence[int], layers: int) -> tuple[int, ...]:
    return tuple(min(index, layers - 1) for index in kept)


def _find(config: Any, path: Path) -> tuple[Any, str]:
    section = config
    for part in path[:-1]:
        section = section.get(part) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not _is_count(section.get(path[-1])) or not section[path[-1]]:
        raise CheckpointError(
            Problem(
                subject="config.json",
                message=f"has no layer count at {'.'.join(path)}, where another model of the recipe has it",
                remedy="list a model of the output's architecture first, or as base_model",
            )
        )
    return section, path[-1]


def _extra_layers(section: Mapping[str, Any]) -> int:
    value = section.get("num_nextn_predict_layers", 0)
    return value if _is_count(value) else 0


def _same_counts(
    config: dict[str, Any], section: dict[str, Any], key: str, old: int
) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the count stands: under `key`, its synonyms beside it, and the top level's copy of a text tower's count."""
    yield section, key
    mirrors = [section]
    if section is not config and any(config.get(name) is section for name in ("text_config", "llm_config")):
        mirrors.append(config)
    for each in mirrors:
        yield from ((each, name) for name in _synonyms(key) if each.get(name) == old)


def _synonyms(key: str) -> tuple[str, ...]:
    if key in _DECODER_KEYS:
        return _DECODER_KEYS
    return _ENCODER_KEYS + _STACK_KEYS if key in _ENCODER_KEYS else _STACK_KEYS
