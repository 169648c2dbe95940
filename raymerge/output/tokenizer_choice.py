"""Whose tokenizer the output gets, how the models' rows are aligned to it, and what to say before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.vocabulary import read_vocabulary, vocabulary_identity
from raymerge.errors import CheckpointError, Problem, RaymergeError
from raymerge.output.chat_template import choose_template, missing_template_warning
from raymerge.output.tokenizer_alignment import Setting, aligned_models, read_setting
from raymerge.planning.nouns import AlignedVocabulary
from raymerge.planning.vocabulary import Member, embedding_rows
from raymerge.recipe.nouns import ModelReference, Recipe

_CONCURRENT_READS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerChoice:
    """`donor` gives the tokenizer's files, None leaves it to the model that gives config.json.

    `checkpoints` are the models with their rows as the output orders them, `vocabulary` says what became of those.
    """

    checkpoints: Mapping[ModelReference, Checkpoint] = field(default_factory=dict)
    donor: Checkpoint | None = None
    vocabulary: AlignedVocabulary | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def choose_tokenizer(recipe: Recipe, opened: Mapping[ModelReference, Checkpoint]) -> TokenizerChoice:
    """Follow `tokenizer_source`, `tokenizer` and `chat_template`; reads tokenizer files, and no weight."""
    try:
        setting = read_setting(recipe, opened) if opened else None
        donor = opened[setting.donor] if setting is not None and setting.donor is not None else None
        warning = _check_template(recipe, donor, opened)
        warnings = (warning,) if warning is not None else ()
        if setting is None or _is_alike(setting, opened):
            return TokenizerChoice(checkpoints=opened, donor=donor, warnings=warnings)
        aligned = aligned_models(recipe, setting, _members(opened, setting.line))
    except RaymergeError as error:
        return TokenizerChoice(checkpoints=opened, problems=error.problems)
    return TokenizerChoice(
        checkpoints=aligned.checkpoints,
        donor=donor,
        vocabulary=aligned.vocabulary,
        warnings=(*warnings, *aligned.warnings),
    )


def _is_alike(setting: Setting, opened: Mapping[ModelReference, Checkpoint]) -> bool:
    """Whether nothing is to be aligned, by what can be seen without taking vocabularies apart."""
    if setting.rules or setting.multiple or len({embedding_rows(each) for each in opened.values()}) > 1:
        return False
    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        try:
            return len(set(pool.map(vocabulary_identity, opened.values()))) == 1
        except CheckpointError:
            return False  # told of for every model when vocabularies are read


def _members(opened: Mapping[ModelReference, Checkpoint], line: int | None) -> dict[ModelReference, Member]:
    """Every model with its vocabulary. Raises RaymergeError with what is wrong in any of them."""

    def read(checkpoint: Checkpoint) -> Member | RaymergeError:
        try:
            return Member(checkpoint=checkpoint, vocabulary=read_vocabulary(checkpoint))
        except RaymergeError as error:
            return error

    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        found = dict(zip(opened, pool.map(read, opened.values()), strict=True))
    problems = [problem for each in found.values() if isinstance(each, RaymergeError) for problem in each.problems]
    for reference, each in found.items():
        if isinstance(each, Member) and embedding_rows(each.checkpoint) is None:
            problems.append(
                Problem(
                    subject=str(reference),
                    message="has no tensor that is known as an embedding: its rows cannot be aligned to a vocabulary",
                    remedy="leave tokenizer_source out, or merge models that share a vocabulary",
                    line=line,
                )
            )
    if problems:
        raise RaymergeError(*problems)
    return {reference: each for reference, each in found.items() if isinstance(each, Member)}


def _check_template(
    recipe: Recipe, donor: Checkpoint | None, opened: Mapping[ModelReference, Checkpoint]
) -> Problem | None:
    if recipe.chat_template is not None:
        choose_template(recipe.chat_template, [])
        return None
    base = opened.get(recipe.base_model) if recipe.base_model is not None else None
    chosen = donor or base or next(iter(opened.values()), None)
    return missing_template_warning(chosen, tuple(opened.values())) if chosen is not None else None
