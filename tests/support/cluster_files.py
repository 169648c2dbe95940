"""The files of cluster/, and ways to misspell them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "cluster"
LETTER = "x"

Path_ = tuple[Any, ...]


def load(name: str) -> list[Any]:
    """The documents of one file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def key_paths(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Where every key of every mapping lies."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        if isinstance(value, dict):
            yield (*path, key)
        yield from key_paths(child, (*path, key))


def misspelt(document: Any, path: Path_) -> Any:
    """A copy whose key at `path` has one letter too many."""
    changed = copy.deepcopy(document)
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    holder[f"{path[-1]}{LETTER}"] = holder.pop(path[-1])
    return changed


def unnoticed(document: Any, *, is_valid: Callable[[Any], bool], free: frozenset[str]) -> list[Path_]:
    """The keys whose misspelling passes. Keys of the mappings named in `free` are the user's own and are left out."""
    paths = [path for path in key_paths(document) if not free & {step for step in path[:-1] if isinstance(step, str)}]
    return [path for path in paths if is_valid(misspelt(document, path))]


def strict(schema: Any) -> Any:
    """A copy of a JSON schema in which a mapping with declared properties takes no others."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tightened = {key: strict(child) for key, child in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        tightened.setdefault("additionalProperties", False)
        if tightened["additionalProperties"] is True:
            tightened["additionalProperties"] = False
    return tightened
