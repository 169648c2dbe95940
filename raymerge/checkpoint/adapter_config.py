"""What adapter_config.json says, as PEFT writes it. What bears on the product and is not carried out is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from raymerge.checkpoint.layout import ADAPTER_CONFIG_NAME
from raymerge.errors import CheckpointError, Problem

# Initialisations that leave the base model as it is. The others (pissa, olora, corda, loftq, lora_ga) subtract from it,
# and their adapters fit what is left over alone.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)
# Settings under which W + scale * B A is not what the adapter does.
_NOT_PLAIN = {
    "use_dora": "DoRA rescales every column by the norm of the merged weight",
    "use_qalora": "QA-LoRA averages its input over groups",
    "use_bdlora": "its factors are block-diagonal",
    "lora_bias": "its second factor has a bias of its own",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it adapts parameters that are no module's weight",
    "trainable_token_indices": "it replaces single rows of the embedding",
    "alora_invocation_tokens": "it acts on some tokens alone",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it rescales its factors",
    "monteclora_config": "its weights are drawn at random",
    "target_modules_to_tie": "it shares factors between tied layers",
    "ensure_weight_tying": "it shares what it saves between tied layers",
}
# What says how it was trained or loaded, or for whom, or is read here.
_HARMLESS = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
        "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
        "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
        "revision", "runtime_config", "target_modules", "task_type", "use_rslora", "velora_config",
    }
)  # fmt: skip
_Number = TypeVar("_Number", int, float)
MERGE_FIRST = "merge it with peft's merge_and_unload, and name the folder that gives"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """Ranks and scales by module; a pattern is a name or a regular expression that a module's name ends with."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    fan_in_fan_out: bool
    notes: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of the factors is multiplied by; with rsLoRA (arXiv 2312.03732) alpha / sqrt(rank)."""
        rank = self.rank_of(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def adapter_settings(config: Mapping[str, Any], *, display: str) -> AdapterSettings:
    """Raises CheckpointError naming every setting that cannot be carried out."""
    subject = f"{display}/{ADAPTER_CONFIG_NAME}"
    problems = [
        *(Problem(subject=subject, message=message, remedy=MERGE_FIRST) for message in _refused(config)),
        *(Problem(subject=subject, message=message, remedy="download it again") for message in _malformed(config)),
    ]
    if problems:
        raise CheckpointError(*problems)
    unknown = [key for key, value in config.items() if value and key not in _HARMLESS and key not in _NOT_PLAIN]
    note = f"adapter_config.json sets {', '.join(unknown)}: not known, taken to bear on training alone"
    return AdapterSettings(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        use_rslora=bool(config.get("use_rslora")),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        notes=(note,) if unknown else (),
    )


def _refused(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("peft_type")
    if kind != "LORA":
        yield f"has peft_type {kind!r}: only LORA adapters can be added on the fly"
    start = config.get("init_lora_weights", True)
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        yield f"has init_lora_weights {start!r}: it changes the base model, so the adapter fits no other"
    for key, reason in _NOT_PLAIN.items():
        if config.get(key):
            yield f"sets {key}: {reason}"


def _malformed(config: Mapping[str, Any]) -> Iterator[str]:
    for key, pattern_key, whole in (("r", "rank_pattern", True), ("lora_alpha", "alpha_pattern", False)):
        patterns = config.get(pattern_key) or {}
        if not _is_number(config.get(key), whole=whole):
            yield f"has {key} {config.get(key)!r}, expected a {'positive whole ' if whole else ''}number"
        if not isinstance(patterns, Mapping):
            yield f"has {pattern_key} {patterns!r}, expected an object"
            continue
        for pattern, value in patterns.items():
            if not _is_number(value, whole=whole) or not _compiles(pattern):
                yield f"has {pattern_key} {pattern!r}: {value!r}, expected a pattern of module names and a number"


def _is_number(value: object, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (isinstance(value, int) and value > 0) if whole else math.isfinite(value)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _by_pattern(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """The value of the first pattern that the name, or its end after a dot, matches: PEFT's rule."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
