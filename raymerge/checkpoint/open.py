"""A model reference to a `Checkpoint`: lists a folder, reads its index, config and headers, and no weight byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raymerge.checkpoint.header import LENGTH_BYTES, Entry, header_nbytes, parse_header
from raymerge.checkpoint.layout import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    PICKLES,
    WeightLayout,
    adapter_problem,
    side_files,
    weight_format,
    weight_layout,
)
from raymerge.checkpoint.locate import Location, locate
from raymerge.checkpoint.nouns import Checkpoint, SourceFile, TensorRef
from raymerge.checkpoint.strict_json import json_object
from raymerge.errors import CheckpointError, NotFoundError, Problem
from raymerge.storage import is_local, store_for
from raymerge.storage.base import ObjectInfo, Store

# The header of a 500-tensor shard has 60 KB: one ranged read gets nearly every header whole.
_REMOTE_GUESS_BYTES = 256 * 1024
_CONCURRENT_HEADERS = 16
_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_INDEX_BYTES = 256 * 2**20  # DeepSeek-V3's index of 91,000 tensors has 9 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class _WeightFile:
    name: str
    source: SourceFile
    entries: Sequence[Entry]


def open_checkpoint(reference: str, *, revision: str | None, display: str, cwd: str) -> Checkpoint:
    """Describe the model that `reference` names: a folder (relative to `cwd`), a URL, or a hub id at `revision`.

    `display` is how messages name the model. Raises CheckpointError naming file and tensor; StorageError where the
    location could not be read.
    """
    return read_checkpoint(locate(reference, revision=revision, display=display, cwd=cwd), display=display)


def read_checkpoint(location: Location, *, display: str) -> Checkpoint:
    store = store_for(location.url)
    infos = _listing(store, location)
    config = _config(store, infos, display=display)
    index_name = weight_format(infos).index_name
    index = _read(store, infos[index_name], _MAX_INDEX_BYTES) if index_name in infos else None
    layout = weight_layout(tuple(infos), index, display=display)
    files = _weight_files(store, infos, layout, display=display)
    tensors, notes = _tensors(files, layout, display=display)
    return Checkpoint(
        reference=display,
        url=location.url,
        origin=location.origin,
        config=config,
        tensors=tensors,
        files=tuple(file.source for file in files),
        side_files=side_files(tuple(infos)),
        hub_id=location.hub_id,
        commit=location.commit,
        notes=location.notes + layout.notes + notes,
    )


def open_adapter(reference: str, *, revision: str | None, display: str, cwd: str) -> Checkpoint:
    """Describe a PEFT adapter as open_checkpoint does a model; its `config` is adapter_config.json."""
    location = locate(reference, revision=revision, display=display, cwd=cwd)
    store = store_for(location.url)
    infos = _listing(store, location)
    name = next((name for name in _ADAPTER_WEIGHTS if name in infos), None)
    if name is None or ADAPTER_CONFIG_NAME not in infos:
        raise CheckpointError(
            Problem(
                subject=display,
                message=f"is no adapter: it lacks {ADAPTER_WEIGHTS_NAME if name is None else ADAPTER_CONFIG_NAME}",
                remedy="name a folder that PEFT's save_pretrained wrote",
            )
        )
    text = _read(store, infos[ADAPTER_CONFIG_NAME], _MAX_CONFIG_BYTES)
    file = _ADAPTER_WEIGHTS[name](store, name, infos[name], display)
    return Checkpoint(
        reference=display,
        url=location.url,
        origin=location.origin,
        config=json_object(text, f"{display}/{ADAPTER_CONFIG_NAME}"),
        tensors={spec.name: TensorRef(spec=spec, file=file.source, offset=offset) for spec, offset in file.entries},
        files=(file.source,),
        side_files=side_files(tuple(infos)),
        hub_id=location.hub_id,
        commit=location.commit,
        notes=location.notes,
    )


def _listing(store: Store, location: Location) -> Mapping[str, ObjectInfo]:
    try:
        infos = store.list(location.url)
    except NotFoundError as error:
        raise CheckpointError(location.missing) from error
    if not infos:
        raise CheckpointError(location.missing)
    return {info.url.rsplit("/", 1)[-1]: info for info in infos}


def _read(store: Store, info: ObjectInfo, max_bytes: int) -> bytes:
    return store.read(info.url, max_bytes=max_bytes)


def _config(store: Store, infos: Mapping[str, ObjectInfo], *, display: str) -> Mapping[str, object]:
    if CONFIG_NAME in infos:
        return json_object(_read(store, infos[CONFIG_NAME], _MAX_CONFIG_BYTES), f"{display}/{CONFIG_NAME}")
    if ADAPTER_CONFIG_NAME in infos:
        raise CheckpointError(adapter_problem(display=display))
    raise CheckpointError(
        Problem(
            subject=display,
            message=f"has no {CONFIG_NAME}",
            remedy="name the folder that holds config.json and the *.safetensors files",
        )
    )


def _identity_on_disk(info: ObjectInfo, header: bytes) -> str:
    """Stands for the content where the store knows no checksum of it: place, size, time of change, and the header.

    Size and header alone would not do: fine-tunes of one model have both in common, and images and archives give
    many files one time. Taken for another, a model would be missing from the merge without a word.
    """
    place = str(Path(info.url).resolve()) if is_local(info.url) else info.url
    told = hashlib.sha256(f"{place}\n{info.version}\n".encode() + header)
    return f"{info.nbytes}-{told.hexdigest()}"


def _weight_files(
    store: Store, infos: Mapping[str, ObjectInfo], layout: WeightLayout, *, display: str
) -> tuple[_WeightFile, ...]:
    missing = [name for name in layout.file_names if name not in infos]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            Problem(
                subject=f"{display}/{layout.format.index_name}",
                message=f"names {missing[0]}{more}, which is not in the folder",
                remedy="complete the download",
            )
        )
    with ThreadPoolExecutor(_CONCURRENT_HEADERS) as pool:
        describe = _pickled_file if layout.format is PICKLES else _weight_file
        jobs = [pool.submit(describe, store, name, infos[name], display) for name in layout.file_names]
        return tuple(job.result() for job in jobs)


def _weight_file(store: Store, name: str, info: ObjectInfo, display: str) -> _WeightFile:
    subject = f"{display}/{name}"
    header = read_header(store, info, subject)
    entries, _ = parse_header(header, info.nbytes, subject)
    return _WeightFile(name=name, source=_source(info, header), entries=entries)


def _pickled_file(store: Store, name: str, info: ObjectInfo, display: str) -> _WeightFile:
    from raymerge.checkpoint.pickled import read_pickled

    entries, pickle = read_pickled(store, info, f"{display}/{name}")
    return _WeightFile(name=name, source=_source(info, pickle), entries=entries)


# PEFT's names, in the order in which it looks for them.
_ADAPTER_WEIGHTS = {ADAPTER_WEIGHTS_NAME: _weight_file, "adapter_model.bin": _pickled_file}


def _source(info: ObjectInfo, header: bytes) -> SourceFile:
    identity = info.identity or _identity_on_disk(info, header)
    return SourceFile(url=info.url, nbytes=info.nbytes, version=info.version, identity=identity)


def read_header(store: Store, info: ObjectInfo, subject: str) -> bytes:
    """A weight file's header with its length prefix, in one read where the guess suffices and two at most.

    Raises CheckpointError, in which the file is `subject`, for a length that cannot be.
    """
    guess = LENGTH_BYTES if is_local(info.url) else _REMOTE_GUESS_BYTES
    start = _range(store, info, 0, min(guess, info.nbytes))
    nbytes = header_nbytes(start, info.nbytes, subject)
    if nbytes > len(start):
        start += _range(store, info, len(start), nbytes - len(start))
    return start[:nbytes]


def _range(store: Store, info: ObjectInfo, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    if nbytes:
        store.read_into(info.url, buffer, offset=offset, version=info.version)
    return bytes(buffer)


def _tensors(
    files: Iterable[_WeightFile], layout: WeightLayout, *, display: str
) -> tuple[dict[str, TensorRef], tuple[str, ...]]:
    """Every tensor of the files by name, checked against the index; notes name tensors that the index lacks."""
    tensors: dict[str, TensorRef] = {}
    file_of: dict[str, str] = {}
    problems: list[Problem] = []
    for file in files:
        for spec, offset in file.entries:
            other = file_of.setdefault(spec.name, file.name)
            if other != file.name:
                message = f"tensor {spec.name!r} is in {other} too"
                problems.append(Problem(subject=f"{display}/{file.name}", message=message, remedy="remove one"))
            tensors[spec.name] = TensorRef(spec=spec, file=file.source, offset=offset)
    if layout.weight_map is None:
        extra = []
    else:
        problems += _index_faults(layout.weight_map, file_of, subject=f"{display}/{layout.format.index_name}")
        extra = [name for name in tensors if name not in layout.weight_map]
    if problems:
        raise CheckpointError(*problems)
    if not extra:
        return tensors, ()
    more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    return tensors, (f"{extra[0]}{more} in the weight files but not in the index: used like the others",)


def _index_faults(weight_map: Mapping[str, str], file_of: Mapping[str, str], *, subject: str) -> list[Problem]:
    """One problem per file whose listed tensors are not in it."""
    misplaced: dict[str, list[str]] = {}
    for tensor, file_name in weight_map.items():
        if file_of.get(tensor) != file_name:
            misplaced.setdefault(file_name, []).append(tensor)
    problems = []
    for file_name, names in sorted(misplaced.items()):
        found = file_of.get(names[0])
        place = f"which has it not; {found} has" if found else "which has it not"
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        problems.append(
            Problem(
                subject=subject,
                message=f"tensor {names[0]!r}{more} is listed in {file_name}, {place}",
                remedy="download the folder again, or write the index again",
            )
        )
    return problems
