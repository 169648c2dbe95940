"""The nearest known word to a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_WORD_LENGTH = 64  # matching takes time quadratic in the length, and no name is longer


def suggest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` most likely meant, or None. Case, "-" and surrounding blanks count for little."""
    if len(word) > _MAX_WORD_LENGTH:
        return None
    by_normal_form: dict[str, str] = {}
    for choice in choices:
        by_normal_form.setdefault(_normalise(choice), choice)
    normal = _normalise(word)
    if normal in by_normal_form:
        return by_normal_form[normal]
    nearest = get_close_matches(normal, by_normal_form, n=1, cutoff=0.6)
    return by_normal_form[nearest[0]] if nearest else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`did you mean CHOICE?`, or "" where nothing is near."""
    suggestion = suggest(word, choices)
    return f"did you mean {suggestion}?" if suggestion is not None else ""


def _normalise(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace(" ", "_")
