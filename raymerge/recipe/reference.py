"""How a recipe names a model.

A text is `path[@revision][+adapter[@revision]]`. Hub ids hold neither "@" nor "+", so there both always separate. Paths
and URLs may hold them:

- a local path is one that starts with "/", "./", "../" or "~", is "." or "..", or has more than one "/"; in it "@" is
  part of the path, and "+" separates only before something with a "/" of its own: a path, a URL or `org/name`
  (`/data/base+org/lora` has an adapter, `./my+model` has none);
- in a URL "@" is part of it, but for `hf://org/name@revision`; and "+" separates only before a path that starts as
  above or another URL.

The mapping form `{model: {path, revision}, lora: {path, revision}}` takes every path as it stands.
"""

from __future__ import annotations

import re

from raymerge.recipe.nouns import ModelReference

_MAX_LENGTH = 4096  # PATH_MAX on Linux
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PATH_START = re.compile(r"/|\.\.?/|~|\.\.?$")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^+]+)?")


def parse_reference(text: str) -> ModelReference:
    """Raises ValueError saying what was found and what was expected."""
    text = text.strip()
    if not text:
        raise ValueError("found an empty name, expected a hub id, a path or a URL")
    if len(text) > _MAX_LENGTH or not text.isprintable():
        raise ValueError(f"found {_shown(text)}, expected a name of at most {_MAX_LENGTH} printable characters")
    place = _adapter_place(text)
    if place is None:
        return parse_model(text)
    base, adapter = text[:place], text[place + 1 :]
    if not base or not adapter:
        raise ValueError(f"found {_shown(text)}, expected a model on both sides of the '+'")
    if not is_local_path(adapter) and not is_url(adapter) and "+" in adapter:
        raise ValueError(f"found {_shown(text)}, expected one adapter at most")
    model = parse_model(base)
    return ModelReference(path=model.path, revision=model.revision, adapter=parse_model(adapter))


def parse_model(text: str) -> ModelReference:
    """`path[@revision]`, with no adapter. Raises ValueError."""
    if is_local_path(text) or (is_url(text) and not text.startswith("hf://")):
        return ModelReference(path=text)
    path, separator, revision = text.partition("@")
    if not path.removeprefix("hf://") or (separator and not revision):
        raise ValueError(f"found {_shown(text)}, expected a model and a revision around the '@'")
    return ModelReference(path=path, revision=revision or None)


def is_url(text: str) -> bool:
    return _SCHEME.match(text) is not None


def is_local_path(text: str) -> bool:
    """Whether the text can only be a path. `org/name` and plain words are hub ids, unless a folder is so named."""
    return not is_url(text) and (_PATH_START.match(text) is not None or text.partition("@")[0].count("/") > 1)


def is_ambiguous(text: str) -> bool:
    """Whether a "+" was read as an adapter's although the whole may be one local path."""
    text = text.strip()
    place = _adapter_place(text)
    return place is not None and is_local_path(text[:place]) and _HUB_ID.fullmatch(text[place + 1 :]) is not None


def _adapter_place(text: str) -> int | None:
    """Where the "+" before the adapter is."""
    scheme = _SCHEME.match(text)
    place = text.find("+", scheme.end() if scheme else 0)
    while place >= 0:
        if _separates(text[:place], text[place + 1 :]):
            return place
        place = text.find("+", place + 1)
    return None


def _separates(before: str, after: str) -> bool:
    explicit = _PATH_START.match(after) is not None or is_url(after)
    if is_url(before) and not before.startswith("hf://"):
        return explicit
    if is_local_path(before):
        return explicit or _HUB_ID.fullmatch(after) is not None
    return True


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
