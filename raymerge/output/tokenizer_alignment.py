"""From a recipe's `tokenizer` and the models' vocabularies to aligned models and the output's tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raymerge.checkpoint.config import with_vocab_size
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.strict_json import json_object
from raymerge.checkpoint.vocabulary import Vocabulary
from raymerge.errors import PlanError, Problem
from raymerge.output.token_ids import IdMap
from raymerge.output.tokenizer import read_files, tokenizer_names
from raymerge.output.tokenizer_union import (
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    extended_settings,
    extended_tokenizer,
    kinds,
    union_ids,
)
from raymerge.planning.nouns import AlignedVocabulary
from raymerge.planning.vocabulary import Member, OutputVocabulary, RowRule, align, embedding_rows, id_problems
from raymerge.recipe.nouns import ModelReference, Recipe
from raymerge.recipe.reference import parse_model, parse_reference
from raymerge.recipe.suggest import did_you_mean

UNION, BASE = "union", "base"
GENERATION_NAME = "generation_config.json"
# Beside tokenizer.json and its config these say nothing about which tokens there are.
_STAY = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json", "normalizer.json")
_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a recipe asks for. `source` is "union", "base" or a model as written.

    `donor` is the model whose tokenizer it begins with; None is the model that gives config.json. `rules` are as
    written, by token.
    """

    source: str
    donor: ModelReference | None
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    multiple: int = 0
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedModels:
    checkpoints: Mapping[ModelReference, Checkpoint]
    vocabulary: AlignedVocabulary
    warnings: tuple[Problem, ...] = ()


def read_setting(recipe: Recipe, opened: Mapping[ModelReference, Checkpoint]) -> Setting | None:
    """None where the recipe says nothing of tokenizers. Raises PlanError for a source that is no model of it."""
    mapping = recipe.tokenizer
    source = recipe.tokenizer_source if mapping is None else _text(mapping.get("source") or UNION)
    if source is None:
        return None
    line = recipe.lines.get("tokenizer_source") or recipe.lines.get("tokenizer")
    named = {str(reference): reference for reference in opened}
    if source not in named and source not in (BASE, UNION):
        raise PlanError(_no_model("tokenizer_source", source, opened, line, "expected base, union or "))
    return Setting(
        source=source,
        donor=named.get(source),
        rules=(mapping or {}).get("tokens") or {},
        multiple=int((mapping or {}).get("pad_to_multiple_of") or 0),
        line=line,
    )


def aligned_models(recipe: Recipe, setting: Setting, members: Mapping[ModelReference, Member]) -> AlignedModels:
    """Align every model. Raises PlanError with everything that is wrong with vocabularies and rules."""
    base = recipe.base_model if recipe.base_model in members else None
    leader = base or next(iter(members))  # gives config.json
    donor = setting.donor or leader
    problems = [problem for member in members.values() for problem in id_problems(member)]
    order = list(members)
    ids = _output_ids(setting, members, donor)
    rules = _row_rules(setting, members, ids, problems)
    if problems:
        raise PlanError(*problems)
    output = _output(setting, members[donor], ids)
    made = align(list(members.values()), order.index(base) if base is not None else None, output, rules)
    checkpoints = dict(zip(members, made.checkpoints, strict=True))
    id_map = IdMap(old=members[leader].vocabulary, ids=ids, row_count=output.row_count)
    checkpoints[leader] = _with_config(checkpoints[leader], members[leader], members[donor], id_map)
    files = _tokenizer_files(members[donor], [members[each] for each in order if each != donor], ids)
    files |= _generation_file(members[leader].checkpoint, members[donor].checkpoint, id_map)
    vocabulary = AlignedVocabulary(
        source=setting.source, token_count=len(ids), row_count=output.row_count, rows=made.rows, files=files
    )
    warnings = (
        *made.warnings,
        *_new_tokens(setting, members, ids),
        *_unlike(setting, members, donor),
        *_lost(id_map, members[donor]),
    )
    return AlignedModels(checkpoints=checkpoints, vocabulary=vocabulary, warnings=warnings)


def _output_ids(setting: Setting, members: Mapping[ModelReference, Member], donor: ModelReference) -> dict[str, int]:
    own = members[donor].vocabulary
    if setting.source != UNION:
        return dict(own.ids)
    others = [member.vocabulary for reference, member in members.items() if reference != donor]
    return union_ids(own, others, list(setting.rules))


def _output(setting: Setting, donor: Member, ids: Mapping[str, int]) -> OutputVocabulary:
    """Padding of the donor's embedding stays unless the vocabulary is a union."""
    rows = embedding_rows(donor.checkpoint) or 0
    kept = donor.vocabulary.end if setting.source == UNION else rows
    count = max(kept, max(ids.values(), default=-1) + 1)
    multiple = setting.multiple or 1
    return OutputVocabulary(ids=ids, row_count=-(-count // multiple) * multiple, kept=kept)


def _row_rules(
    setting: Setting, members: Mapping[ModelReference, Member], ids: Mapping[str, int], problems: list[Problem]
) -> dict[str, RowRule]:
    rules = {}
    for token, form in setting.rules.items():
        subject = f"tokenizer.tokens.{token}"
        if token not in ids:
            union = "tokenizer.source: union adds it" if setting.source != UNION else ""
            message = "is no token of the output's vocabulary"
            remedy = did_you_mean(token, ids) or union
            problems.append(Problem(subject=subject, message=message, remedy=remedy, line=setting.line))
            continue
        try:
            rules[token] = _row_rule(token, form, members, subject, setting.line)
        except PlanError as error:
            problems += error.problems
    return rules


def _row_rule(
    token: str, form: Mapping[str, Any], members: Mapping[ModelReference, Member], subject: str, line: int | None
) -> RowRule:
    source, force = form.get("source"), bool(form.get("force", False))
    kind = source.get("kind") if isinstance(source, Mapping) else None
    if kind == "zero":
        return RowRule(member=None, force=force)
    model = source.get("model") if kind is not None and isinstance(source, Mapping) else source
    written = _text(model)
    reference = next((each for each in members if str(each) == written), None)
    if reference is None:
        opened = {each: member.checkpoint for each, member in members.items()}
        raise PlanError(_no_model(subject, written, opened, line, "expected "))
    member = members[reference]
    rows = embedding_rows(member.checkpoint) or 0
    if kind is not None and isinstance(source, Mapping) and source.get("token_id") is not None:
        row = int(source["token_id"])
        if not 0 <= row < rows:
            message = f"found token_id {row}, but the embedding of {written} has {rows:,} rows"
            raise PlanError(Problem(subject=subject, message=message, remedy=f"use 0 to {rows - 1}", line=line))
        return RowRule(member=list(members).index(reference), row=row, force=force)
    name = str(source["token"]) if kind is not None and isinstance(source, Mapping) else token
    if name not in member.vocabulary.ids:
        message = f"{written} has no token {name!r}"
        remedy = did_you_mean(name, member.vocabulary.ids) or "name a model that has it, or {kind: zero}"
        raise PlanError(Problem(subject=subject, message=message, remedy=remedy, line=line))
    return RowRule(member=list(members).index(reference), row=member.vocabulary.ids[name], force=force)


def _no_model(subject: str, written: str, opened: Iterable[ModelReference], line: int | None, expected: str) -> Problem:
    names = [str(each) for each in opened]
    remedy = did_you_mean(written, names) or f"{expected}one of the models"
    return Problem(
        subject=subject, message=f"found {written}, which is no model of this recipe", remedy=remedy, line=line
    )


def _text(model: Any) -> str:
    """A model as its reference prints it, from either form of a recipe."""
    if not isinstance(model, Mapping):
        text = str(model)
        return text if text in (UNION, BASE) else str(parse_reference(text))
    parts = [model.get("model", model), model.get("lora")]
    return "+".join(_part(part) for part in parts if part is not None)


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(parse_model(str(part)))
    revision = f"@{part['revision']}" if part.get("revision") else ""
    return f"{part.get('path', '')}{revision}"


def _with_config(leader: Checkpoint, before: Member, donor: Member, id_map: IdMap) -> Checkpoint:
    config: Mapping[str, Any] = leader.config
    if embedding_rows(before.checkpoint) != id_map.row_count:
        config = with_vocab_size(config, id_map.row_count)
    if not id_map.is_identity:
        config = id_map.config(config, donor.checkpoint.config)
    return replace(leader, config=config)


def _tokenizer_files(donor: Member, others: Sequence[Member], ids: Mapping[str, int]) -> dict[str, bytes | None]:
    """What differs from the donor's tokenizer files: nothing, where the output has just its tokens."""
    if len(ids) == len(donor.vocabulary.ids):
        return {}
    checkpoint = donor.checkpoint
    names = tokenizer_names(checkpoint)
    text, fresh = extended_tokenizer(donor.vocabulary, [each.vocabulary for each in others], ids)
    files: dict[str, bytes | None] = {name: None for name in names if name not in _STAY}
    files[TOKENIZER_NAME] = text
    if TOKENIZER_CONFIG_NAME in names:
        settings = _json(checkpoint, TOKENIZER_CONFIG_NAME)
        files[TOKENIZER_CONFIG_NAME] = _as_text(extended_settings(settings, fresh))
    return files


def _generation_file(leader: Checkpoint, donor: Checkpoint, id_map: IdMap) -> dict[str, bytes | None]:
    if id_map.is_identity or GENERATION_NAME not in leader.side_files:
        return {}
    of_donor = _json(donor, GENERATION_NAME) if GENERATION_NAME in donor.side_files else donor.config
    return {GENERATION_NAME: _as_text(id_map.config(_json(leader, GENERATION_NAME), of_donor))}


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    return json_object(read_files(checkpoint, [name])[name], f"{checkpoint.reference}/{name}")


def _as_text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _new_tokens(
    setting: Setting, members: Mapping[ModelReference, Member], ids: Mapping[str, int]
) -> Iterator[Problem]:
    for token in setting.rules:
        if token in ids and all(token not in member.vocabulary.ids for member in members.values()):
            yield Problem(
                subject=f"tokenizer.tokens.{token}",
                message=f"no model has this token: it is added, with the id {ids[token]}",
                line=setting.line,
            )


def _unlike(setting: Setting, members: Mapping[ModelReference, Member], donor: ModelReference) -> Iterator[Problem]:
    """Tokens of one name mean different text where one tokenizer spells bytes and another letters."""
    vocabularies: list[Vocabulary] = [member.vocabulary for member in members.values()]
    found = dict(zip(members, kinds(vocabularies), strict=True))
    unlike = [str(each) for each, kind in found.items() if kind and found[donor] and kind != found[donor]]
    if unlike:
        some = ", ".join(unlike[:_NAMED_AT_MOST]) + (" and others" if len(unlike) > _NAMED_AT_MOST else "")
        first = next(kind for each, kind in found.items() if str(each) == unlike[0])
        yield Problem(
            subject="tokenizer_source",
            message=f"{some}: {first}, {donor}: {found[donor]}; tokens are matched by name, though they spell text "
            "differently",
            remedy="check how many rows were matched",
            line=setting.line,
        )


def _lost(id_map: IdMap, donor: Member) -> Iterator[Problem]:
    for key in dict.fromkeys(id_map.lost):
        yield Problem(
            subject=f"config.json {key}",
            message=f"its token is not in the vocabulary of {donor.checkpoint.reference}: the output has none there",
            remedy="tokenizer_source: union keeps it",
        )
