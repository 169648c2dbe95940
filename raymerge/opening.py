"""Opening a recipe's models: headers and configs, side by side, with every failure kept as a problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.open import open_checkpoint
from raymerge.checkpoint.quantization import quantization_problem
from raymerge.errors import Problem, RaymergeError
from raymerge.planning.binding import model_references
from raymerge.recipe.nouns import ModelReference, Recipe

_CONCURRENT_MODELS = 8
_CONCURRENT_DOWNLOADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModels:
    """The models that could be opened, in recipe order, and what is wrong with the others."""

    checkpoints: Mapping[ModelReference, Checkpoint] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def open_models(recipe: Recipe) -> OpenedModels:
    """Open every model that the recipe names; relative paths are relative to the working directory."""
    references = model_references(recipe)
    with ThreadPoolExecutor(_CONCURRENT_MODELS, thread_name_prefix="raymerge-open") as pool:
        found = list(pool.map(_open, references))
    checkpoints = {ref: each for ref, each in zip(references, found, strict=True) if isinstance(each, Checkpoint)}
    problems = [
        replace(problem, line=_line(recipe, ref)) if problem.line is None else problem
        for ref, each in zip(references, found, strict=True)
        if isinstance(each, RaymergeError)
        for problem in each.problems
    ]
    return OpenedModels(checkpoints=checkpoints, problems=tuple(problems))


def keep_in_cache(models: Iterable[Checkpoint]) -> bool:
    """Download the weights of hub models into the hub's own cache; whether there was any that was not there."""
    from raymerge.storage.hub import keep_input

    urls = [file.url for model in models for file in model.files if file.url.startswith("hf://")]
    with ThreadPoolExecutor(_CONCURRENT_DOWNLOADS, thread_name_prefix="raymerge-keep") as pool:
        list(pool.map(keep_input, urls))
    return bool(urls)


def _open(reference: ModelReference) -> Checkpoint | RaymergeError:
    if reference.adapter is not None:
        return RaymergeError(
            Problem(
                subject=str(reference),
                message="adapters cannot be merged on the fly yet",
                remedy="merge the adapter into its base first (peft's merge_and_unload), then name that folder",
            )
        )
    try:
        opened = open_checkpoint(
            reference.path, revision=reference.revision, display=str(reference), cwd=str(Path.cwd())
        )
    except RaymergeError as error:
        return error
    problem = quantization_problem(opened)
    return opened if problem is None else RaymergeError(problem)


def _line(recipe: Recipe, reference: ModelReference) -> int | None:
    """The line that first names a model."""
    for module in recipe.modules:
        for source in (*module.models, *(source for each in module.slices for source in each.sources)):
            if source.model == reference:
                return source.line
    return recipe.lines.get("base_model") if reference == recipe.base_model else None
