"""The oracle's view of a whole recipe: what every output tensor of a Llama-shaped merge is made of, in float64."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from parity import oracle

LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
AFTER = ("model.norm.", "lm_head.")
BASE_IS_INPUT = ("linear", "slerp", "karcher", "passthrough")
PER_INPUT = ("weight", "density", "gamma", "epsilon", "scale")
SHARED = (
    *("normalize", "lambda", "rescale", "t", "nuslerp_flatten", "nuslerp_row_wise", "normalize_weights", "eps"),
    *("max_iter", "tol", "select_topk", "filter_wise", "epsilon", "r", "alpha"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A slice of the recipe with its settings by level, nearest first."""

    sources: tuple[Mapping[str, Any], ...]
    ranges: tuple[tuple[int, int], ...]
    base: str | None
    levels: tuple[Mapping[str, Any], ...]

    @property
    def length(self) -> int:
        return self.ranges[0][1] - self.ranges[0][0]


def merge_model(recipe: Mapping[str, Any], models: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Every output tensor of the recipe, exact and not rounded to the output's type."""
    layers = 1 + max(int(match[1]) for name in models["base"] if (match := LAYER.match(name)))
    pieces = list(_pieces(recipe, layers))
    output: dict[str, np.ndarray] = {}
    start = 0
    for piece in pieces:
        for name in models["base"]:
            match = LAYER.match(name)
            if match and int(match[1]) == 0:
                for i in range(piece.length):
                    t = i / (piece.length - 1) if piece.length > 1 else 1.0
                    inputs = tuple(f"model.layers.{first + i}.{match[2]}" for first, _ in piece.ranges)
                    output_name = f"model.layers.{start + i}.{match[2]}"
                    output[output_name] = _merge(recipe, piece, models, inputs, output_name, t)
        start += piece.length
    for name in models["base"]:
        if not LAYER.match(name):
            piece = pieces[-1] if name.startswith(AFTER) else pieces[0]
            output[name] = _merge(recipe, piece, models, (name,) * len(piece.sources), name, 0.0)
    return output


def _pieces(recipe: Mapping[str, Any], layers: int) -> Iterator[Piece]:
    top = recipe.get("parameters", {})
    base = recipe.get("base_model")
    if "modules" in recipe:
        (module,) = recipe["modules"].values()
        levels: tuple[Mapping[str, Any], ...] = (module.get("parameters", {}), top)
        recipe = {**module, "base_model": base}
    else:
        levels = (top,)
    if "models" in recipe:
        sources = list(recipe["models"])
        if base is not None and base not in [source["model"] for source in sources]:
            sources.insert(0, {"model": base})
        yield Piece(sources=tuple(sources), ranges=((0, layers),) * len(sources), base=base, levels=levels)
        return
    for piece in recipe["slices"]:
        yield Piece(
            sources=tuple(piece["sources"]),
            ranges=tuple(tuple(source["layer_range"]) for source in piece["sources"]),
            base=piece.get("base_model", base),
            levels=(piece.get("parameters", {}), *levels),
        )


def _merge(
    recipe: Mapping[str, Any],
    piece: Piece,
    models: Mapping[str, Mapping[str, np.ndarray]],
    inputs: tuple[str, ...],
    output_name: str,
    t: float,
) -> np.ndarray:
    method = recipe["merge_method"]
    tensors = [models[source["model"]][name] for source, name in zip(piece.sources, inputs, strict=True)]
    is_base = [source["model"] == piece.base for source in piece.sources]
    shared = _set_ones(SHARED, piece.levels, output_name, t)
    each = [
        _set_ones(PER_INPUT, (source.get("parameters", {}), *piece.levels), name, t)
        for source, name in zip(piece.sources, inputs, strict=True)
    ]
    base = next((tensor for tensor, flag in zip(tensors, is_base, strict=True) if flag), None)
    if method in BASE_IS_INPUT:
        if method == "slerp":
            tensors = sorted(tensors, key=lambda tensor: tensor is not base)
        return oracle.merge_tensor(method, tensors, shared=shared, each=each)
    others = [i for i, flag in enumerate(is_base) if not flag]
    return oracle.merge_tensor(
        method, [tensors[i] for i in others], base=base, shared=shared, each=[each[i] for i in others]
    )


def _set_ones(names: tuple[str, ...], levels: tuple[Mapping[str, Any], ...], tensor: str, t: float) -> dict[str, Any]:
    values = {}
    for name in names:
        for level in levels:
            value = _evaluate(level.get(name), tensor, t)
            if value is not None:
                values[name] = value
                break
    return values


def _evaluate(setting: Any, tensor: str, t: float) -> Any:
    if isinstance(setting, list) and setting and isinstance(setting[0], dict):
        for condition in setting:
            pattern = condition.get("filter")
            if pattern in (None, "*") or pattern in tensor:
                return _evaluate(condition["value"], tensor, t)
        return None
    if not isinstance(setting, list):
        return float(setting) if isinstance(setting, str) else setting
    if not setting:
        return None
    setting = [float(entry) if isinstance(entry, str) else entry for entry in setting]
    position = t * (len(setting) - 1)
    if isinstance(setting[0], bool):
        return setting[int(position)]
    low = int(position)
    high = min(low + 1, len(setting) - 1)
    return setting[low] + (setting[high] - setting[low]) * (position - low)
