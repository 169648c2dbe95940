"""Whether a checkpoint stores codes instead of values. Codes are never merged as if they were numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.dtypes import DType
from raymerge.errors import Problem

_CONFIG_KEYS = ("quantization_config", "compression_config")
_CODES = frozenset({DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0, DType.F4, DType.F6_E2M3, DType.F6_E3M2})
_PACKED = frozenset({DType.U8, DType.I8, DType.I32, DType.U32})
# Integer tensors of these names are packed weights or their scales, written by bitsandbytes, GPTQ and AWQ,
# compressed-tensors, and MXFP4 (gpt-oss).
_PACKED_NAMES = re.compile(
    r".*(?:\.weight|\.qweight|\.qzeros|\.weight_packed|\.absmax|\.quant_map|\.SCB|_blocks|_scales|"
    r"\.quant_state\.bitsandbytes__(?:nf4|fp4))"
)


def quantization_of(checkpoint: Checkpoint) -> str | None:
    """The quantization in a few words, by config.json or else by its tensors; None where weights are plain values."""
    return _by_config(checkpoint.config) or _by_tensors(checkpoint)


def quantization_problem(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> Problem | None:
    """Why this checkpoint cannot be merged, if weights of it are codes; `config` is the one that tells of them."""
    told, left = _by_config(checkpoint.config if config is None else config), _by_tensors(checkpoint)
    if left is None and (told is None or config is not None):
        return None
    found = ", ".join(each for each in (told, left) if each is not None)
    return Problem(
        subject=checkpoint.reference,
        message=f"is quantized: {found}; no exact decoding of that is known here",
        remedy="use the unquantized model, or convert this one to bfloat16 first",
    )


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The object of config.json that describes a quantization, at the top or in a part such as text_config."""
    return next((settings for _, settings in _settings(config)), None)


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` as of the model before it was quantized."""
    return {
        key: {inner: each for inner, each in value.items() if inner not in _CONFIG_KEYS}
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
        if key not in _CONFIG_KEYS
    }


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for section in [config, *(value for value in config.values() if isinstance(value, Mapping))]:
        for key in _CONFIG_KEYS:
            settings = section.get(key)
            if isinstance(settings, Mapping) and settings:
                yield key, settings


def _by_config(config: Mapping[str, Any]) -> str | None:
    return next((f"{_method(settings)} ({key} in config.json)" for key, settings in _settings(config)), None)


def _method(settings: Mapping[str, Any]) -> str:
    method = str(settings.get("quant_method") or settings.get("quant_algo") or "an unnamed method")
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        return f"{method} 4-bit {settings.get('bnb_4bit_quant_type', '')}".rstrip()
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return f"{method} 8-bit"
    return f"{method} {settings['bits']}-bit" if isinstance(settings.get("bits"), int) else method


def _by_tensors(checkpoint: Checkpoint) -> str | None:
    for name, ref in checkpoint.tensors.items():
        dtype = ref.spec.dtype
        if dtype in _CODES or (dtype in _PACKED and _PACKED_NAMES.fullmatch(name)):
            return f"{dtype.value} codes (tensor {name})"
    return None
