"""Ids of special tokens in config.json and generation_config.json, which are to mean the output's tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymerge.checkpoint.vocabulary import Vocabulary

_ONE_OR_MORE = re.compile(r"_token_(id|ids|index)$")
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
# What a tokenizer decides: they come with it. Others (an image's token) belong to the model.
_OF_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")


@dataclass(slots=True)
class IdMap:
    """From the ids of the model that gives config.json to the output's; `lost` collects keys whose token is gone."""

    old: Vocabulary
    ids: Mapping[str, int]
    row_count: int
    lost: list[str] = field(default_factory=list)
    _tokens: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self._tokens = {place: token for token, place in self.old.ids.items()}

    @property
    def is_identity(self) -> bool:
        return all(self.ids.get(token) == place for token, place in self.old.ids.items())

    def config(self, config: Mapping[str, Any], of_tokenizer: Mapping[str, Any]) -> dict[str, Any]:
        """`config` with the output's ids; `of_tokenizer` is the same file of the tokenizer's model, whose ids stay."""
        changed: dict[str, Any] = {}
        for key, value in config.items():
            if key in _OF_TOKENIZER and of_tokenizer.get(key) is not None:
                changed[key] = of_tokenizer[key]
            elif _ONE_OR_MORE.search(key) or key in _LISTS:
                changed[key] = self._value(key, value)
            elif isinstance(value, Mapping):
                nested = of_tokenizer.get(key)
                changed[key] = self.config(value, nested if isinstance(nested, Mapping) else {})
            else:
                changed[key] = value
        return changed

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, list):
            mapped = [self._value(key, each) for each in value]
            return [each for each in mapped if each is not None and each != []]
        if type(value) is not int or value < 0:
            return value
        token = self._tokens.get(value)
        found = self.ids.get(token) if token is not None else (value if value < self.row_count else None)
        if found is None:
            self.lost.append(key)
        return found
