"""Tokenizers for tests, made of seeded merges rather than of text, and small Llamas that have them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    CODES,
    Arrays,
    llama_config,
    llama_shapes,
    random_arrays,
    read_tensors,
    write_config,
    write_weights,
)

Added = Mapping[str, int]


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE, in the library's order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def bpe(count: int, *, seed: int, special: Sequence[str] = ("<s>", "</s>")) -> dict[str, Any]:
    """A byte-level tokenizer.json of exactly `count` tokens; `special` ones are added last.

    Tokens of another seed are partly the same: merges are drawn from few letters.
    """
    draw = random.Random(seed)
    tokens = byte_alphabet()
    known = set(tokens)
    letters = [*"etaoinshrdlu", "Ġ"]
    short = list(letters)
    merges = []
    while len(tokens) < count - len(special):
        left, right = draw.choice(short), draw.choice(letters if draw.random() < 0.5 else short)
        made = left + right
        if made in known or len(made) > 9:
            continue
        known.add(made)
        tokens.append(made)
        merges.append([left, right])
        short.append(made)
    return tokenizer_json(
        {"type": "BPE", "vocab": {token: place for place, token in enumerate(tokens)}, "merges": merges},
        {token: len(tokens) + place for place, token in enumerate(special)},
        byte_level=True,
    )


def tokenizer_json(model: Mapping[str, Any], added: Added, *, byte_level: bool = False) -> dict[str, Any]:
    """A tokenizer.json around a model; every added token is special."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    whole: dict[str, Any] = {
        "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(content, place) for content, place in added.items()],
        "normalizer": None,
        "pre_tokenizer": level if byte_level else {"type": "Whitespace"},
        "post_processor": None,
        "decoder": level if byte_level else None,
        "model": {**whole, **model} if model["type"] == "BPE" else dict(model),
    }


def added_token(content: str, place: int, *, special: bool = True) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": place, "content": content, **plain, "special": special}


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token, as the library gives them."""
    from tokenizers import Tokenizer

    return dict(Tokenizer.from_str(json.dumps(tokenizer)).get_vocab(with_added_tokens=True))


def write_model(
    folder: Path,
    tokenizer: Mapping[str, Any] | None,
    *,
    rows: int,
    seed: int,
    hidden: int = 8,
    head: bool = True,
    dtype: str = "float32",
    config: Mapping[str, Any] | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """A one-layer Llama of random weights whose embedding has `rows` rows."""
    shape: dict[str, Any] = {"layers": 1, "hidden": hidden, "heads": 2, "vocab": rows, "tie": not head}
    arrays: Arrays = random_arrays(llama_shapes(**shape), seed=seed, scale=1.0)
    write_weights(folder, arrays, CODES[dtype])
    write_config(folder, llama_config(**shape, dtype=dtype) | dict(config or {}))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **(tokenizer_config or {})}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(dict(generation_config)))
    return folder


def rows_of(folder: Path, name: str) -> np.ndarray:
    return read_tensors(folder)[name].astype(np.float64)


def words(tokens: Sequence[str], added: Added | None = None) -> dict[str, Any]:
    """A tokenizer.json of whole words, with the ids that their order gives; `added` ones may have any id beside."""
    vocab = {token: place for place, token in enumerate(tokens)}
    return tokenizer_json({"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]}, added or {})
