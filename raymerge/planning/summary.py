"""The plan in a few plain keys: what a manifest keeps, so that two plans can be told apart by what a user wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.recipe.nouns import Condition, ModelReference, Module, Recipe, Setting, Settings, Slice, Source


def plan_summary(
    recipe: Recipe,
    opened: Mapping[ModelReference, Checkpoint],
    random_seed: int,
    shard_bytes: int,
    method_sha256: str = "",
) -> dict[str, Any]:
    """JSON values only. Model names are as written, with content identities of their files beside them.

    `method_sha256` is of the code of a method from outside this package.
    """
    body: dict[str, Any] = {
        "merge_method": recipe.merge_method,
        "merge_method_sha256": method_sha256 or None,
        "base_model": _model(recipe.base_model),
        "parameters": _settings(recipe.parameters),
        "dtype": recipe.dtype.recipe_name if recipe.dtype else None,
        "out_dtype": recipe.out_dtype.recipe_name if recipe.out_dtype else None,
        "tokenizer_source": recipe.tokenizer_source,
        "tokenizer": recipe.tokenizer,
        "keep_dtype": list(recipe.keep_dtype),
        "on_missing": recipe.on_missing.value,
        "on_mismatch": recipe.on_mismatch.value,
        "out_shard_size": shard_bytes,
        "random_seed": random_seed,
    }
    for module in recipe.modules:
        body.update(_module(module))
    body["files"] = {
        checkpoint.reference: {file.url.rsplit("/", 1)[-1]: file.identity for file in checkpoint.files}
        for checkpoint in opened.values()
    }
    return {key: value for key, value in body.items() if value not in (None, [], {})}


def _module(module: Module) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    if module.models:
        inner["models"] = [_source(each) for each in module.models]
    if module.slices:
        inner["slices"] = [_slice(each) for each in module.slices]
    if not module.prefix:
        return inner
    return {f"modules.{module.prefix}": {**inner, "parameters": _settings(module.parameters)}}


def _slice(each: Slice) -> dict[str, Any]:
    found = {"sources": [_source(source) for source in each.sources], "parameters": _settings(each.parameters)}
    return {**found, "base_model": _model(each.base_model)}


def _source(source: Source) -> dict[str, Any]:
    found: dict[str, Any] = {"model": _model(source.model), "parameters": _settings(source.parameters)}
    if source.layer_range is not None:
        found["layer_range"] = list(source.layer_range)
    return found


def _model(model: ModelReference | None) -> str | None:
    return str(model) if model is not None else None


def _settings(settings: Settings) -> dict[str, Any]:
    return {name: _value(setting) for name, setting in settings.items()}


def _value(setting: Setting) -> Any:
    value = setting.value
    if isinstance(value, tuple):
        return [_condition(each) if isinstance(each, Condition) else each for each in value]
    return value


def _condition(condition: Condition) -> dict[str, Any]:
    value = list(condition.value) if isinstance(condition.value, tuple) else condition.value
    return {"filter": condition.filter, "value": value}
