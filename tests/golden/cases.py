"""Case: one recipe of the golden set, and small helpers to write recipes in a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Recipe = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A recipe that names models of `inputs.make_models` and what is known about the peer's output for it.

    `group` is the input shape. `tolerance` bounds max|ours - golden| / max|golden| per tensor where the usual one for
    its stored type (1e-5 for float32, one step of the largest element for others) is too small. `differs` gives the
    reason where the peer's result is not the recipe's meaning: such a case is compared with the float64 oracle alone.
    `crashes` gives the peer's complaint where it makes no output; raymerge makes one unless the case is `refused`.
    """

    name: str
    recipe: Recipe
    group: str = "core"
    tolerance: float | None = None
    differs: str = ""
    crashes: str = ""
    refused: bool = False

    @property
    def method(self) -> str:
        return str(self.recipe["merge_method"])


def source(model: str, layers: tuple[int, int] | None = None, **parameters: Any) -> Recipe:
    entry: Recipe = {"model": model}
    if layers is not None:
        entry["layer_range"] = list(layers)
    if parameters:
        entry["parameters"] = parameters
    return entry


def models(method: str, *sources: Recipe, base: str | None = None, **keys: Any) -> Recipe:
    recipe: Recipe = {"merge_method": method, "models": list(sources)}
    return _finish(recipe, base, keys)


def slices(method: str, *cuts: Recipe, base: str | None = None, **keys: Any) -> Recipe:
    recipe: Recipe = {"merge_method": method, "slices": list(cuts)}
    return _finish(recipe, base, keys)


def cut(*sources: Recipe, base: str | None = None, **parameters: Any) -> Recipe:
    entry: Recipe = {"sources": list(sources)}
    if base is not None:
        entry["base_model"] = base
    if parameters:
        entry["parameters"] = parameters
    return entry


def _finish(recipe: Recipe, base: str | None, keys: dict[str, Any]) -> Recipe:
    if base is not None:
        recipe["base_model"] = base
    structural = ("dtype", "out_dtype", "tokenizer_source", "chat_template")
    recipe.update({key: keys.pop(key) for key in structural if key in keys})
    recipe.setdefault("dtype", "float32")
    if recipe["dtype"] is None:
        del recipe["dtype"]
    if keys:
        recipe["parameters"] = {key.removesuffix("_"): value for key, value in keys.items()}  # lambda_ -> lambda
    return recipe


def where(**values: Any) -> list[Recipe]:
    """Conditions by tensor name, tried in order: `where(self_attn=0.1, mlp=[0, 1], rest=0.5)`."""
    return [
        {"value": value} if filter == "rest" else {"filter": filter, "value": value} for filter, value in values.items()
    ]


def with_paths(recipe: Any, paths: Mapping[str, Any]) -> Any:
    """The recipe with model names replaced by folders."""
    if isinstance(recipe, dict):
        return {
            key: str(paths[value]) if key in ("model", "base_model") else with_paths(value, paths)
            for key, value in recipe.items()
        }
    if isinstance(recipe, list):
        return [with_paths(entry, paths) for entry in recipe]
    return recipe
