"""`raymerge.json`: what an output folder is meant to hold, from the first second on, and whether it does.

Only what the plan determines is in it, so that a run that was interrupted ends with the same bytes as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import Problem, VerifyError
from raymerge.planning.header import shard_nbytes
from raymerge.planning.nouns import Plan
from raymerge.storage import redact
from raymerge.storage.crc32 import crc32

MANIFEST_NAME = "raymerge.json"
MAX_MANIFEST_BYTES = 64 * 2**20  # 10,000 shards have some 1 MB
_FORMAT = 1  # raise when older readers would misread it


class State(Enum):
    """`complete` is the only mark of a finished output."""

    RUNNING = "running"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One planned weight file; `crc32` of the whole file is known once the output is complete.

    So is `nonfinite`: how many merged values are not finite, by tensor.
    """

    file_name: str
    nbytes: int
    crc32: int | None = None
    nonfinite: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRecord:
    """One model that was read, its reference without credentials; `files` are content identities by file name."""

    reference: str
    files: Mapping[str, str]
    hub_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`summary` is the plan in a few plain keys, good enough to name what differs between two plans.

    `side_files` are the small files that the run writes, with their CRC32. `is_tolerant` says of an unfinished output
    that shards with values that are not finite may be in it.
    """

    state: State
    plan_digest: str
    shards: tuple[ShardRecord, ...]
    inputs: tuple[InputRecord, ...]
    summary: Mapping[str, Any] = field(default_factory=dict)
    side_files: Mapping[str, int] = field(default_factory=dict)
    is_tolerant: bool = False

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)


def running_manifest(
    plan: Plan, *, side_files: Mapping[str, bytes] | None = None, is_tolerant: bool = False
) -> Manifest:
    """What is written before the first shard."""
    return Manifest(
        state=State.RUNNING,
        plan_digest=plan.digest,
        shards=tuple(ShardRecord(file_name=shard.file_name, nbytes=shard_nbytes(shard)) for shard in plan.shards),
        inputs=tuple(_input_record(part) for part in _parts(plan)),
        summary=_without_credentials(plan.summary),
        side_files={name: crc32(data) for name, data in (side_files or {}).items()},
        is_tolerant=is_tolerant,
    )


def completed(
    manifest: Manifest, checksums: Mapping[str, int], nonfinite: Mapping[str, Mapping[str, int]] | None = None
) -> Manifest:
    """The success marker; `checksums` has the CRC32 of every shard's file, `nonfinite` what ShardRecord says."""
    bad = nonfinite or {}
    shards = tuple(
        replace(shard, crc32=checksums[shard.file_name], nonfinite=bad.get(shard.file_name, {}))
        for shard in manifest.shards
    )
    return replace(manifest, state=State.COMPLETE, shards=shards, is_tolerant=False)


def to_bytes(manifest: Manifest) -> bytes:
    document = {
        "format": _FORMAT,
        "state": manifest.state.value,
        "plan": manifest.plan_digest,
        "shards": [_shard_document(shard) for shard in manifest.shards],
        "inputs": [
            {
                "model": each.reference,
                **({"hub_id": each.hub_id} if each.hub_id else {}),
                **({"commit": each.commit} if each.commit else {}),
                "files": dict(each.files),
            }
            for each in manifest.inputs
        ],
        "small": {name: f"{checksum:08x}" for name, checksum in manifest.side_files.items()},
        "summary": dict(manifest.summary),
        **({"nan": "warn"} if manifest.is_tolerant else {}),
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def parse_manifest(text: bytes, *, subject: str) -> Manifest:
    """The manifest in `text`; `subject` names its place. Raises VerifyError for what `to_bytes` did not write."""
    try:
        document = json.loads(text.decode("utf-8"))
        if document["format"] != _FORMAT:
            raise VerifyError(
                Problem(
                    subject=subject,
                    message=f"has format {document['format']!r}, this version reads {_FORMAT}",
                    remedy="use the version of raymerge that wrote it, or --overwrite",
                )
            )
        return Manifest(
            state=State(document["state"]),
            plan_digest=_text(document["plan"]),
            shards=tuple(_shard_record(each) for each in document["shards"]),
            inputs=tuple(_parse_input(each) for each in document["inputs"]),
            summary=_mapping(document["summary"]),
            side_files=dict(_side_file(*each) for each in _mapping(document.get("small", {})).items()),
            is_tolerant=document.get("nan") == "warn",
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VerifyError(
            Problem(
                subject=subject,
                message=f"is not a manifest of raymerge ({type(error).__name__}: {error})",
                remedy="choose another folder, or --overwrite to replace what is there",
            )
        ) from error


def differences(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """What tells two plans apart, as a user wrote it: "models[2].parameters.weight 0.3 -> 0.4". Empty for one plan."""
    if old.plan_digest == new.plan_digest:
        return ()
    found = tuple(_compare("", _plain(old.summary), _plain(new.summary)))
    if found:
        return found
    sizes = [(shard.file_name, shard.nbytes) for shard in old.shards]
    if sizes != [(shard.file_name, shard.nbytes) for shard in new.shards]:
        return (f"shard files: {_extent(old)} -> {_extent(new)}",)
    return ("how this version of raymerge computes or lays out the same recipe",)


def _parts(plan: Plan) -> tuple[Checkpoint, ...]:
    """Every model as the recipe names it, then the adapters that were added, each once."""
    adapters = {model.adapter.url: model.adapter for model in plan.models if model.adapter is not None}
    return (*plan.models, *adapters.values())


def _input_record(model: Checkpoint) -> InputRecord:
    return InputRecord(
        reference=redact(model.reference),
        files={file.url.rsplit("/", 1)[-1]: file.identity for file in model.files},
        hub_id=model.hub_id,
        commit=model.commit,
    )


def _without_credentials(value: Any) -> Any:
    """Credentials can stand in URLs alone; other texts stay as they are, whatever they look like."""
    if isinstance(value, Mapping):
        return {_without_credentials(key): _without_credentials(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(item) for item in value]
    return redact(value) if isinstance(value, str) and "://" in value else value


def _shard_document(shard: ShardRecord) -> dict[str, Any]:
    document: dict[str, Any] = {"file": shard.file_name, "nbytes": shard.nbytes}
    if shard.nonfinite:
        document["nonfinite"] = dict(shard.nonfinite)
    return document if shard.crc32 is None else {**document, "crc32": f"{shard.crc32:08x}"}


def _shard_record(document: Mapping[str, Any]) -> ShardRecord:
    name, nbytes, crc32 = _text(document["file"]), document["nbytes"], document.get("crc32")
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no file name")
    if type(nbytes) is not int or nbytes < 0:
        raise ValueError(f"{nbytes!r} is no size")
    nonfinite = _mapping(document.get("nonfinite", {}))
    if any(type(count) is not int for count in nonfinite.values()):
        raise ValueError(f"{name}: nonfinite holds no numbers")
    return ShardRecord(
        file_name=name, nbytes=nbytes, crc32=None if crc32 is None else int(_text(crc32), 16), nonfinite=nonfinite
    )


def _side_file(name: str, checksum: object) -> tuple[str, int]:
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} is no file in the folder")
    return name, int(_text(checksum), 16)


def _parse_input(document: Mapping[str, Any]) -> InputRecord:
    return InputRecord(
        reference=_text(document["model"]),
        files=_mapping(document["files"]),
        hub_id=document.get("hub_id"),
        commit=document.get("commit"),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    return value


def _plain(value: Any) -> Any:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value))


def _compare(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        separator = "/" if path.startswith("files.") else "."
        for key in dict.fromkeys((*old, *new)):
            yield from _compare(f"{path}{separator}{key}" if path else key, old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and _are_records(old) and _are_records(new):
        for index in range(max(len(old), len(new))):
            yield from _compare(f"{path}[{index}]", _at(old, index), _at(new, index))
    elif json.dumps(old) == json.dumps(new):  # as texts, true and 1 differ
        return
    elif path.startswith("files."):
        yield f"{path.removeprefix('files.')} {_file_change(old, new)}"
    else:
        yield f"{path} {_shown(old)} -> {_shown(new)}"


def _are_records(value: Sequence[Any]) -> bool:
    """Lists of numbers (gradients, layer ranges) read better whole."""
    return any(isinstance(item, dict) for item in value)


def _at(value: Sequence[Any], index: int) -> Any:
    return value[index] if index < len(value) else None


def _file_change(old: object, new: object) -> str:
    if old is None:
        return "is new"
    return "is gone" if new is None else "has changed"


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, dict) and "model" in value:
        return str(value["model"])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _extent(manifest: Manifest) -> str:
    return f"{len(manifest.shards)} with {manifest.nbytes} bytes"
