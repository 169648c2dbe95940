"""YAML out: metadata blocks, and a recipe fit to be shown to anybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from raymerge.recipe.document import UnreadableError, plain, read_document
from raymerge.recipe.reference import is_local_path, is_url

_HUB_SCHEME = "hf://"
_FENCE = "---"


def to_yaml(mapping: Mapping[str, Any]) -> str:
    """`mapping` as YAML, keys in their order."""
    return yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True, width=120)


def to_yaml_documents(*mappings: Mapping[str, Any]) -> str:
    """Several documents in one text, keys in their order; texts of several lines stand as they are, in blocks."""
    documents = [dict(mapping) for mapping in mappings]
    return yaml.dump_all(
        documents, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=True
    )


class _BlockDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and repeats what would be an alias."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _block_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _block_text)


def shareable_recipe(text: str, rename: Callable[[str], str | None]) -> str:
    """The recipe in `text` with every value that is a local path or a private URL replaced by `rename`'s answer.

    `rename` is asked about every text value; where it answers None, a value that can only be a path or a URL becomes
    "local: " and its last part. Comments are dropped: they may hold anything.
    """
    documents = [_walk(plain(root), rename) for root in read_document(text).roots]
    return yaml.safe_dump_all(
        documents, sort_keys=False, allow_unicode=True, width=120, explicit_start=len(documents) > 1
    )


def front_matter(text: str) -> dict[str, Any]:
    """The metadata block at the head of a model card; empty where there is none that can be read."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != _FENCE:
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == _FENCE), None)
    if end is None:
        return {}
    try:
        roots = read_document("\n".join(lines[1:end])).roots
    except UnreadableError:
        return {}
    value = plain(roots[0]) if roots else {}
    return value if isinstance(value, dict) else {}


def _walk(value: Any, rename: Callable[[str], str | None]) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(item, rename) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, rename) for item in value]
    if not isinstance(value, str):
        return value
    renamed = rename(value)
    if renamed is not None:
        return renamed
    return f"local: {_last_part(value)}" if _is_private(value) else value


def _is_private(value: str) -> bool:
    """Whether a text is a path or a URL other than the hub's; templates and prose are neither."""
    if "\n" in value or "{" in value or value.startswith(_HUB_SCHEME):
        return False
    return is_url(value) or value.startswith("~") or "\\" in value or is_local_path(value)


def _last_part(value: str) -> str:
    return value.split("?", 1)[0].replace("\\", "/").rstrip("/").rpartition("/")[2] or "folder"
