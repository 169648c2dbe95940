"""A tokenizer that knows more tokens than its donor: what the other models have beside it, and what a recipe names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymerge.checkpoint.vocabulary import Vocabulary
from raymerge.errors import PlanError, Problem

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Below every piece that was learned: what another kind of model brings is cut out of text last.
_UNIGRAM_STEP = 10.0


def union_ids(donor: Vocabulary, others: Sequence[Vocabulary], more: Sequence[str] = ()) -> dict[str, int]:
    """The donor's tokens as they are, then what each of the others has beside them in its own order, then `more`."""
    ids = dict(donor.ids)
    end = donor.end
    for token in (token for names in (*(other.ids for other in others), more) for token in names):
        if token not in ids:
            ids[token] = end
            end += 1
    return ids


def extended_tokenizer(
    donor: Vocabulary, others: Sequence[Vocabulary], ids: Mapping[str, int]
) -> tuple[bytes, list[dict[str, Any]]]:
    """The text of a tokenizer.json with exactly the tokens `ids`, and the tokens that are added beside the donor's.

    Text is cut as the donor cuts it, and then further where merges of the others apply. Raises PlanError where the
    donor has no tokenizer.json, or the library does not give the tokens these ids.
    """
    if donor.document is None:
        raise PlanError(
            Problem(
                subject=donor.file,
                message="tokens can only be added to a tokenizer.json, and there is none",
                remedy="write one: transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)",
            )
        )
    document = dict(donor.document)
    new = [token for token in ids if token not in donor.ids]
    document["model"] = _model(document["model"], others, ids, new)
    known = {entry["content"] for entry in document.get("added_tokens") or ()}
    entries = [dict(entry) for token, entry in donor.added.items() if token not in known]
    fresh = [dict(entry) for entry in _added(new, others, ids)]
    document["added_tokens"] = sorted(
        [*(document.get("added_tokens") or ()), *(_entry(each) for each in (*entries, *fresh))],
        key=lambda entry: entry["id"],
    )
    text = json.dumps(document, ensure_ascii=False).encode()
    _check(text, ids, donor.file)
    return text, [_entry(each) for each in fresh]


def extended_settings(settings: Mapping[str, Any], fresh: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """tokenizer_config.json with the fresh tokens where it lists those that are added."""
    decoder = settings.get("added_tokens_decoder")
    if not isinstance(decoder, Mapping):
        return dict(settings)
    more = {str(entry["id"]): {key: entry[key] for key in ("content", *_FLAGS)} for entry in fresh}
    return {**settings, "added_tokens_decoder": {**decoder, **more}}


def kinds(vocabularies: Sequence[Vocabulary]) -> list[str]:
    """What each tokenizer's model is called, and how it spells text: "BPE on bytes", "WordPiece", ..."""
    return [_kind(each) for each in vocabularies]


def _kind(vocabulary: Vocabulary) -> str:
    document = vocabulary.document
    if document is None:
        return ""
    name = str(document.get("model", {}).get("type") or "BPE")
    stages = json.dumps([document.get("pre_tokenizer"), document.get("decoder")])
    return f"{name} on bytes" if "ByteLevel" in stages else name


def _model(
    model: Mapping[str, Any], others: Sequence[Vocabulary], ids: Mapping[str, int], new: Sequence[str]
) -> dict[str, Any]:
    """The donor's model with every token, added ones too, since the library counts on from the model's tokens."""
    if isinstance(model.get("vocab"), list):
        return {**model, "vocab": _pieces(model["vocab"], others, ids)}
    changed = {**model, "vocab": dict(sorted(ids.items(), key=lambda item: item[1]))}
    if isinstance(model.get("merges"), list):
        changed["merges"] = [*model["merges"], *_merges(model["merges"], others, ids, set(new))]
    return changed


def _pieces(pieces: list[Any], others: Sequence[Vocabulary], ids: Mapping[str, int]) -> list[Any]:
    scores: dict[str, float] = {}
    for other in others:
        own = (other.document or {}).get("model", {}).get("vocab")
        for token, score in own if isinstance(own, list) else ():
            scores.setdefault(token, score)
    lowest = min((float(score) for _, score in pieces), default=0.0) - _UNIGRAM_STEP
    ordered = sorted(ids, key=lambda token: ids[token])
    return [*pieces, *([token, scores.get(token, lowest)] for token in ordered[len(pieces) :])]


def _merges(own: list[Any], others: Sequence[Vocabulary], ids: Mapping[str, int], new: set[str]) -> Iterator[Any]:
    """The others' merges that make new tokens, in their order and in the donor's spelling."""
    as_text = bool(own) and isinstance(own[0], str)
    known = {_pair(merge) for merge in own}
    for other in others:
        model = (other.document or {}).get("model", {})
        for merge in model.get("merges") or ():
            left, right = pair = _pair(merge)
            is_useful = left + right in new and left in ids and right in ids and pair not in known
            if is_useful and not (as_text and " " in left + right):
                known.add(pair)
                yield f"{left} {right}" if as_text else [left, right]


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _added(new: Sequence[str], others: Sequence[Vocabulary], ids: Mapping[str, int]) -> Iterator[Mapping[str, Any]]:
    """Those of the new tokens that text is cut at: added by a model that has them, or in no model's vocabulary."""
    for token in new:
        holders = [other for other in others if token in other.ids]
        entry = next((other.added[token] for other in holders if token in other.added), None)
        if entry is not None or not holders:
            yield {**(entry or {"content": token}), "id": ids[token]}


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    flags = {key: bool(entry.get(key, False)) for key in _FLAGS}
    return {"id": entry["id"], "content": entry["content"], **flags}


def _check(text: bytes, ids: Mapping[str, int], subject: str) -> None:
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(text.decode()).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises no narrower class
        message = f"cannot take the tokens of the other models: {error}"
        raise PlanError(Problem(subject=subject, message=message, remedy="set tokenizer_source: base")) from error
    wrong = next((token for token in ids if found.get(token) != ids[token]), None)
    if wrong is not None or len(found) != len(ids):
        message = f"with the tokens of the other models, {wrong!r} would not have the id {ids.get(wrong or '')}"
        raise PlanError(Problem(subject=subject, message=message, remedy="set tokenizer_source: base"))
