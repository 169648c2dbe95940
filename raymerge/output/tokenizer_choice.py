"""Whose tokenizer the output gets, and what to say about it before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.vocabulary import vocabulary_identity
from raymerge.errors import Problem, RaymergeError
from raymerge.output.chat_template import choose_template, missing_template_warning
from raymerge.recipe.nouns import ModelReference, Recipe

_TO_ALIGN = ("tokens", "pad_to_multiple_of")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerChoice:
    """`donor` gives the tokenizer's files, None leaves it to the model that gives config.json."""

    donor: Checkpoint | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def choose_tokenizer(recipe: Recipe, opened: Mapping[ModelReference, Checkpoint]) -> TokenizerChoice:
    """Follow `tokenizer_source`, `tokenizer` and `chat_template`; reads tokenizer files, and no weight."""
    try:
        donor = _donor(recipe, opened)
        warning = _check_template(recipe, donor, opened)
    except RaymergeError as error:
        return TokenizerChoice(problems=error.problems)
    return TokenizerChoice(donor=donor, warnings=(warning,) if warning is not None else ())


def _donor(recipe: Recipe, opened: Mapping[ModelReference, Checkpoint]) -> Checkpoint | None:
    source = recipe.tokenizer_source
    if recipe.tokenizer is not None:
        source = str(recipe.tokenizer.get("source", "base"))
        unsupported = [key for key in _TO_ALIGN if recipe.tokenizer.get(key)]
        if unsupported:
            raise RaymergeError(
                Problem(
                    subject=f"tokenizer.{unsupported[0]}",
                    message="rows of embeddings cannot be moved or added yet",
                    remedy="leave it out: models with one vocabulary need no alignment",
                    line=recipe.lines.get("tokenizer"),
                )
            )
    if source is None or not opened:
        return None
    line = recipe.lines.get("tokenizer_source") or recipe.lines.get("tokenizer")
    _check_one_vocabulary(opened, line)
    named = {str(reference): checkpoint for reference, checkpoint in opened.items()}
    if source in named:
        return named[source]
    if source not in ("base", "union"):
        raise RaymergeError(
            Problem(
                subject="tokenizer_source",
                message=f"found {source}, which is no model of this recipe",
                remedy="expected base, union or one of the models",
                line=line,
            )
        )
    return None


def _check_one_vocabulary(opened: Mapping[ModelReference, Checkpoint], line: int | None) -> None:
    known: dict[str, Checkpoint] = {}
    for checkpoint in opened.values():
        known.setdefault(vocabulary_identity(checkpoint), checkpoint)
    if len(known) > 1:
        first, second = list(known.values())[:2]
        raise RaymergeError(
            Problem(
                subject="tokenizer_source",
                message=f"{first.reference} and {second.reference} have different vocabularies: cannot be aligned yet",
                remedy="merge models that share a vocabulary",
                line=line,
            )
        )


def _check_template(
    recipe: Recipe, donor: Checkpoint | None, opened: Mapping[ModelReference, Checkpoint]
) -> Problem | None:
    if recipe.chat_template is not None:
        choose_template(recipe.chat_template, [])
        return None
    base = opened.get(recipe.base_model) if recipe.base_model is not None else None
    chosen = donor or base or next(iter(opened.values()), None)
    return missing_template_warning(chosen, tuple(opened.values())) if chosen is not None else None
