"""A checkpoint's vocabulary: which token has which id, as its tokenizer's files say."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.strict_json import json_object
from raymerge.errors import CheckpointError, Problem
from raymerge.storage import join_url, store_for

# In the order in which transformers looks for them.
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
_READABLE = ("tokenizer.json", "vocab.json", "vocab.txt")
_MAX_BYTES = 256 * 2**20
_AGAIN = "use the tokenizer files that were saved with the weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Ids by token, in the order of the ids; `file` names where they were read. `document` is the tokenizer.json.

    `added` are tokens that text is cut at before all others, as tokenizer.json writes them, by token.
    """

    file: str
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    document: Mapping[str, Any] | None = None

    @property
    def end(self) -> int:
        """One more than the highest id."""
        return max(self.ids.values(), default=-1) + 1


def vocabulary_identity(checkpoint: Checkpoint) -> str:
    """Equal for two checkpoints whose vocabulary files have the same bytes. Raises CheckpointError where there is none.

    Added tokens, which other files may hold, count too.
    """
    names = [_vocabulary_file(checkpoint)]
    names += [name for name in ("tokenizer_config.json", "added_tokens.json") if name in checkpoint.side_files]
    digest = hashlib.sha256()
    for name in names:
        data = _read(checkpoint, name)
        if name == "tokenizer_config.json":
            settings = json_object(data, f"{checkpoint.reference}/{name}").get("added_tokens_decoder")
            data = json.dumps(settings, sort_keys=True).encode()
        digest.update(name.encode() + hashlib.sha256(data).digest())
    return digest.hexdigest()


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Raises CheckpointError: no tokenizer, one whose tokens cannot be read here, or one that contradicts itself."""
    name = next((name for name in _READABLE if name in checkpoint.side_files), None)
    if name is None:
        raise CheckpointError(_unreadable(checkpoint, _vocabulary_file(checkpoint)))
    subject = f"{checkpoint.reference}/{name}"
    data = _read(checkpoint, name)
    document = None if name == "vocab.txt" else _unique_object(data, subject)
    problems: list[Problem] = []
    added: dict[str, Mapping[str, Any]] = {}
    if name == "tokenizer.json" and document is not None:
        ids = _model_ids(document, subject, problems)
        _add(ids, added, _own_added(document, subject), subject, problems)
    elif document is not None:
        ids = _checked(document, subject, problems)
    else:
        ids = _of_lines(data, subject, problems)
    if name != "tokenizer.json" and "added_tokens.json" in checkpoint.side_files:
        beside = f"{checkpoint.reference}/added_tokens.json"
        more = _checked(_unique_object(_read(checkpoint, "added_tokens.json"), beside), beside, problems)
        _add(ids, added, [_plain_added(token, place) for token, place in more.items()], beside, problems)
    _add_configured(checkpoint, ids, added, problems)
    problems += _shared_ids(ids, subject)
    if problems:
        raise CheckpointError(*problems)
    ordered = dict(sorted(ids.items(), key=lambda item: item[1]))
    whole = document if name == "tokenizer.json" else None
    return Vocabulary(file=subject, ids=ordered, added=added, document=whole)


def _vocabulary_file(checkpoint: Checkpoint) -> str:
    name = next((name for name in _VOCABULARY_FILES if name in checkpoint.side_files), None)
    if name is None:
        raise CheckpointError(
            Problem(
                subject=checkpoint.reference,
                message=f"has no tokenizer: none of {', '.join(_VOCABULARY_FILES)}",
                remedy="leave tokenizer_source out, or name a model that has one",
            )
        )
    return name


def _unreadable(checkpoint: Checkpoint, name: str) -> Problem:
    return Problem(
        subject=f"{checkpoint.reference}/{name}",
        message="is the only form of its vocabulary, whose tokens cannot be matched here; expected tokenizer.json",
        remedy="write one: transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)",
    )


def _read(checkpoint: Checkpoint, name: str) -> bytes:
    return store_for(checkpoint.url).read(join_url(checkpoint.url, name), max_bytes=_MAX_BYTES)


class _DuplicateError(ValueError):
    pass


def _unique_object(data: bytes, subject: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _DuplicateError(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except _DuplicateError as error:
        message = f"names {str(error)!r} twice"
        raise CheckpointError(Problem(subject=subject, message=message, remedy=_AGAIN)) from error
    except (ValueError, RecursionError):
        value = json_object(data, subject)  # says what is wrong with it
    if not isinstance(value, dict):
        return json_object(data, subject)
    return value


def _model_ids(document: Mapping[str, Any], subject: str, problems: list[Problem]) -> dict[str, int]:
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        return _checked(vocabulary, subject, problems)
    if not isinstance(vocabulary, list):
        problems.append(Problem(subject=subject, message="has no model.vocab", remedy=_AGAIN))
        return {}
    ids: dict[str, int] = {}  # Unigram: pairs of token and score, the id is the position
    for place, pair in enumerate(vocabulary):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            message = f"entry {place} of model.vocab is {str(pair)[:60]}, expected a token and its score"
            problems.append(Problem(subject=subject, message=message, remedy=_AGAIN))
            return {}
        if ids.setdefault(pair[0], place) != place:
            message = f"has the token {pair[0]!r} twice, as {ids[pair[0]]} and {place}"
            problems.append(Problem(subject=subject, message=message, remedy=_AGAIN))
    return ids


def _checked(vocabulary: Mapping[str, Any], subject: str, problems: list[Problem]) -> dict[str, int]:
    wrong = next((token for token, place in vocabulary.items() if type(place) is not int or place < 0), None)
    if wrong is not None:
        message = f"gives {wrong!r} the id {str(vocabulary[wrong])[:60]}, expected a whole number from 0 on"
        problems.append(Problem(subject=subject, message=message, remedy=_AGAIN))
        return {}
    return dict(vocabulary)


def _of_lines(data: bytes, subject: str, problems: list[Problem]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for place, line in enumerate(data.decode("utf-8", "replace").removesuffix("\n").split("\n")):
        token = line.removesuffix("\r")
        if ids.setdefault(token, place) != place:
            message = f"has the token {token!r} twice, as {ids[token]} and {place}"
            problems.append(Problem(subject=subject, message=message, remedy=_AGAIN))
    return ids


def _own_added(document: Mapping[str, Any], subject: str) -> Iterator[Mapping[str, Any]]:
    for entry in document.get("added_tokens") or ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
            message = f"has the added token {str(entry)[:60]}, expected content and id"
            raise CheckpointError(Problem(subject=subject, message=message, remedy=_AGAIN))
        yield entry


def _plain_added(token: str, place: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": place, "content": token, **flags, "special": False}


def _add_configured(
    checkpoint: Checkpoint, ids: dict[str, int], added: dict[str, Mapping[str, Any]], problems: list[Problem]
) -> None:
    """Tokens that only tokenizer_config.json adds, which transformers takes too."""
    name = "tokenizer_config.json"
    if name not in checkpoint.side_files:
        return
    subject = f"{checkpoint.reference}/{name}"
    decoder = json_object(_read(checkpoint, name), subject).get("added_tokens_decoder")
    entries = []
    for key, entry in decoder.items() if isinstance(decoder, Mapping) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("content"), str) and str(key).isdecimal():
            token = str(entry["content"])
            entries.append({**_plain_added(token, int(key)), **entry, "id": int(key)})
    _add(ids, added, entries, subject, problems)


def _add(
    ids: dict[str, int],
    added: dict[str, Mapping[str, Any]],
    entries: Any,
    subject: str,
    problems: list[Problem],
) -> None:
    for entry in entries:
        token, place = entry["content"], entry.get("id")
        if type(place) is not int or place < 0:
            message = f"gives {token!r} the id {str(place)[:60]}, expected a whole number from 0 on"
            problems.append(Problem(subject=subject, message=message, remedy=_AGAIN))
        elif ids.setdefault(token, place) != place:
            message = f"has the token {token!r} twice, as {ids[token]} and {place}"
            problems.append(Problem(subject=subject, message=message, remedy=_AGAIN))
        added.setdefault(token, entry)


def _shared_ids(ids: Mapping[str, int], subject: str) -> Iterator[Problem]:
    if len(set(ids.values())) == len(ids):
        return
    first: dict[int, str] = {}
    for token, place in ids.items():
        if first.setdefault(place, token) != token:
            message = f"gives the id {place} to {first[place]!r} and to {token!r}"
            yield Problem(subject=subject, message=message, remedy=_AGAIN)
            return
