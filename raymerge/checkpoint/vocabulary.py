"""A checkpoint's vocabulary, as far as it takes to tell whether two of them are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.strict_json import json_object
from raymerge.errors import CheckpointError, Problem
from raymerge.storage import join_url, store_for

# In the order in which transformers looks for them.
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
_MAX_BYTES = 256 * 2**20


def vocabulary_identity(checkpoint: Checkpoint) -> str:
    """Equal for two checkpoints whose tokens have the same ids.

    Of a tokenizer.json the tokens and ids count, not how text is cut; of other files the bytes.
    Raises CheckpointError where there is no vocabulary.
    """
    name = next((name for name in _VOCABULARY_FILES if name in checkpoint.side_files), None)
    if name is None:
        raise CheckpointError(
            Problem(
                subject=checkpoint.reference,
                message=f"has no tokenizer: none of {', '.join(_VOCABULARY_FILES)}",
                remedy="leave tokenizer_source out, or name a model that has one",
            )
        )
    data = store_for(checkpoint.url).read(join_url(checkpoint.url, name), max_bytes=_MAX_BYTES)
    if name != "tokenizer.json":
        return hashlib.sha256(data).hexdigest()
    tokens = _tokens(json_object(data, f"{checkpoint.reference}/{name}"))
    return hashlib.sha256(repr(sorted(tokens.items())).encode()).hexdigest()


def _tokens(document: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token of a tokenizer.json: the model's own, then the added ones."""
    model = document.get("model")
    vocabulary = model.get("vocab", {}) if isinstance(model, Mapping) else {}
    if isinstance(vocabulary, Mapping):
        tokens = {str(token): int(index) for token, index in vocabulary.items()}
    else:  # Unigram: pairs of token and score, the id is the position
        tokens = {str(pair[0]): index for index, pair in enumerate(vocabulary)}
    for added in document.get("added_tokens") or ():
        tokens[str(added["content"])] = int(added["id"])
    return tokens
