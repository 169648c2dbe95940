"""Opening a recipe's models: headers and configs, side by side, with every failure kept as a problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from raymerge.checkpoint.adapter import with_adapter
from raymerge.checkpoint.decoded import decoded
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.open import open_adapter, open_checkpoint
from raymerge.errors import Problem, RaymergeError
from raymerge.planning.binding import model_references
from raymerge.planning.garbage import without_collection
from raymerge.recipe.nouns import ModelReference, Recipe

_CONCURRENT_MODELS = 8
_CONCURRENT_DOWNLOADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModels:
    """The models that could be opened, in recipe order, and what is wrong with the others."""

    checkpoints: Mapping[ModelReference, Checkpoint] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@without_collection
def open_models(recipe: Recipe) -> OpenedModels:
    """Open every model that the recipe names; relative paths are relative to the working directory.

    A model that stands alone and under several adapters is read once.
    """
    references = model_references(recipe)
    parts = dict.fromkeys(part for reference in references for part in _parts(reference))
    with ThreadPoolExecutor(_CONCURRENT_MODELS, thread_name_prefix="raymerge-open") as pool:
        found = dict(zip(parts, pool.map(_open, parts), strict=True))
    checkpoints = {}
    problems: dict[Problem, Problem] = {}  # by what they say, so that a model under several adapters is told of once
    for reference in references:
        made = _assembled(reference, found)
        if isinstance(made, Checkpoint):
            checkpoints[reference] = made
            continue
        line = _line(recipe, reference)
        for problem in made.problems:
            problems.setdefault(problem, replace(problem, line=line) if problem.line is None else problem)
    return OpenedModels(checkpoints=checkpoints, problems=tuple(problems.values()))


def keep_in_cache(models: Iterable[Checkpoint]) -> bool:
    """Download the weights of hub models into the hub's own cache; whether there was any that was not there."""
    from raymerge.storage.hub import keep_input

    urls = [file.url for model in models for file in model.files if file.url.startswith("hf://")]
    with ThreadPoolExecutor(_CONCURRENT_DOWNLOADS, thread_name_prefix="raymerge-keep") as pool:
        list(pool.map(keep_input, urls))
    return bool(urls)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What is opened by itself: a model, or an adapter."""

    reference: ModelReference
    is_adapter: bool = False


def _parts(reference: ModelReference) -> tuple[_Part, ...]:
    model = _Part(reference=replace(reference, adapter=None))
    return (model,) if reference.adapter is None else (model, _Part(reference=reference.adapter, is_adapter=True))


def _open(part: _Part) -> Checkpoint | RaymergeError:
    reference = part.reference
    read = open_adapter if part.is_adapter else open_checkpoint
    try:
        opened = read(reference.path, revision=reference.revision, display=str(reference), cwd=str(Path.cwd()))
        return opened if part.is_adapter else decoded(opened)
    except RaymergeError as error:
        return error


def _assembled(
    reference: ModelReference, found: Mapping[_Part, Checkpoint | RaymergeError]
) -> Checkpoint | RaymergeError:
    """The model with its adapter, if it has one, or everything that is wrong with either."""
    parts = [found[part] for part in _parts(reference)]
    failures = [problem for part in parts if isinstance(part, RaymergeError) for problem in part.problems]
    if failures:
        return RaymergeError(*failures)
    model, *adapters = [part for part in parts if isinstance(part, Checkpoint)]
    try:
        for adapter in adapters:
            model = with_adapter(model, adapter, reference=str(reference))
    except RaymergeError as error:
        return error
    return model


def _line(recipe: Recipe, reference: ModelReference) -> int | None:
    """The line that first names a model."""
    for module in recipe.modules:
        for source in (*module.models, *(source for each in module.slices for source in each.sources)):
            if source.model == reference:
                return source.line
    return recipe.lines.get("base_model") if reference == recipe.base_model else None
