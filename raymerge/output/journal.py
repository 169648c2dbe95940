"""The output is its own journal: what a folder holds decides what is left to do there.

Order: manifest "running", config and tokenizer, shards, index, manifest "complete". Only the last marks a finished
model; whatever dies in between is continued by running the same plan again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raymerge.errors import NotFoundError, PlanError, Problem, RaymergeError, StorageError, VerifyError
from raymerge.output.chat_template import TOKENIZER_CONFIG
from raymerge.output.index import index_json
from raymerge.output.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    State,
    completed,
    differences,
    parse_manifest,
    running_manifest,
    to_bytes,
)
from raymerge.output.tokenizer import is_copied_name
from raymerge.planning.header import shard_header, shard_nbytes
from raymerge.planning.nouns import Plan, ShardReceipt, ShardTask
from raymerge.storage import ObjectInfo, base_name, is_local, join_url, store_for
from raymerge.storage.crc32 import crc32

INDEX_NAME = "model.safetensors.index.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".safetensors.index.json", ".bin.index.json")
MAX_SIDE_FILE_BYTES = 256 << 20
_CONCURRENT_HEADERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What a folder holds of a plan: `kept` finished shards by file name, `foreign` weight files of something else.

    `stale` are small files beside those of something else, which loaders would mix with the plan's own. `is_used` says
    that there was a manifest or something foreign.
    """

    out: str
    kept: Mapping[str, ObjectInfo] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    is_used: bool = False
    manifest: Manifest | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def is_complete(self) -> bool:
        return self.manifest is not None and self.manifest.state is State.COMPLETE

    @property
    def may_hold_nonfinite(self) -> bool:
        """Whether `kept` shards may hold merged values that are not finite, of which there is no note."""
        is_unfinished = self.manifest is None or self.manifest.is_tolerant
        return bool(self.kept) and is_unfinished


def is_weight_file(name: str) -> bool:
    """Whether a loader that finds this file may take it for weights, or for the index of weights."""
    return name.endswith(_WEIGHT_SUFFIXES)


def probe_destination(out: str, inputs: Iterable[str]) -> tuple[Problem, ...]:
    """What is wrong with a folder as a destination, whatever goes there: it is an input, or cannot be written."""
    for url in inputs:
        if _place(url) == _place(out):
            message = "is one of the models that are merged"
            return (Problem(subject=out, message=message, remedy="choose another folder for the output"),)
    try:
        store_for(out).probe(out, nbytes=0)
    except RaymergeError as error:
        return error.problems
    return ()


def _place(url: str) -> str:
    """The one spelling of a folder, links followed."""
    return os.path.realpath(url) if is_local(url) else url.rstrip("/")  # unlike Path.resolve it takes links in a loop


def inspect_destination(plan: Plan, out: str, *, overwrite: bool) -> Destination:
    """What is there already, and whether this plan may write there. Reads headers only, changes nothing."""
    infos = {base_name(info.url): info for info in _listing(out)}
    kept = _finished_shards(plan, infos)
    manifest, problems = None, []
    if MANIFEST_NAME in infos:
        manifest, problem = _read_manifest(out)
        problems += [problem] if problem is not None and not overwrite else []
    is_ours = manifest is not None and manifest.plan_digest == plan.digest
    own = _own_weights(plan) if is_ours else {*kept}
    foreign = tuple(name for name in infos if is_weight_file(name) and name not in own)
    if manifest is not None and not is_ours:
        problems += [] if overwrite else [_other_plan(out, manifest, plan)]
    elif foreign and not problems and not overwrite:
        problems.append(_foreign_weights(out, foreign))
    left = sum(shard_nbytes(shard) for shard in plan.shards if shard.file_name not in kept)
    try:
        store_for(out).probe(out, nbytes=left)
    except RaymergeError as error:
        problems += error.problems
    is_used = bool(foreign) or MANIFEST_NAME in infos
    return Destination(
        out=out,
        kept=kept,
        foreign=foreign,
        stale=tuple(name for name in infos if is_copied_name(name)) if is_used else (),
        is_used=is_used,
        manifest=manifest,
        problems=tuple(problems),
    )


def _own_weights(plan: Plan) -> set[str]:
    names = {shard.file_name for shard in plan.shards}
    return names | {INDEX_NAME} if len(names) > 1 else names


def begin(plan: Plan, destination: Destination, side_files: Mapping[str, bytes], *, is_tolerant: bool = False) -> None:
    """Make the folder this plan's: old markers and foreign files go first, then the manifest and the small files.

    `is_tolerant` says that shards may get values that are not finite: what continues this output has to look for them.
    Raises PlanError, with nothing written, where another plan has made it its own since it was looked at.
    """
    out, store = destination.out, store_for(destination.out)
    manifest = destination.manifest
    is_ours = manifest is not None and manifest.plan_digest == plan.digest
    # What was not there a moment ago is not this plan's to remove.
    markers = (MANIFEST_NAME, INDEX_NAME) if destination.is_used and not is_ours else ()
    stale = {*_outlived(destination, side_files)} if is_ours else {*destination.stale} - {*side_files}
    for name in (*markers, *destination.foreign, *sorted(stale)):
        store.delete(join_url(out, name))
    started = running_manifest(
        plan, side_files=side_files, is_tolerant=is_tolerant or (is_ours and destination.may_hold_nonfinite)
    )
    if not is_ours:
        _claim(plan, out, started)
    elif not destination.is_complete or len(destination.kept) < len(plan.shards):
        store.put(join_url(out, MANIFEST_NAME), to_bytes(started))
    for name, data in side_files.items():
        store.put(join_url(out, name), data)


def _outlived(destination: Destination, side_files: Mapping[str, bytes]) -> Iterator[str]:
    """Small files of an earlier run of the same plan that this one would not write: the chat template or the tokenizer
    may be another now, or not wanted. What a run has not written, or somebody changed since, is not its to remove.
    """
    store = store_for(destination.out)
    written = destination.manifest.side_files if destination.manifest is not None else {}
    for name in destination.stale if TOKENIZER_CONFIG in side_files else ():
        if name not in side_files:
            yield name
    for name in written.keys() - side_files.keys():
        try:
            content = store.read(join_url(destination.out, name), max_bytes=MAX_SIDE_FILE_BYTES)
        except NotFoundError:
            continue  # somebody else was faster
        if crc32(content) == written[name]:
            yield name


def _claim(plan: Plan, out: str, started: Manifest) -> None:
    """Write the manifest where there is none; one that came meanwhile has to be of the same plan."""
    if store_for(out).put_new(join_url(out, MANIFEST_NAME), to_bytes(started)):
        return
    manifest, problem = _read_manifest(out)
    if manifest is None or manifest.plan_digest != plan.digest:
        raise PlanError(_other_plan(out, manifest, plan) if manifest is not None else problem or "no manifest")
    if started.is_tolerant and manifest.state is State.RUNNING:
        store_for(out).put(join_url(out, MANIFEST_NAME), to_bytes(started))


def finish(
    plan: Plan, out: str, receipts: Iterable[ShardReceipt], side_files: Mapping[str, bytes] | None = None
) -> Manifest:
    """Write the index and then the success marker, and remove what dead writers left."""
    store = store_for(out)
    receipts = tuple(receipts)
    checksums = {receipt.file_name: receipt.crc32 for receipt in receipts}
    nonfinite = {receipt.file_name: dict(receipt.nonfinite) for receipt in receipts}
    index = index_json(plan.shards)
    if index is not None:
        store.put(join_url(out, INDEX_NAME), index)
    store.clean(out, names=tuple(shard.file_name for shard in plan.shards))
    manifest = completed(running_manifest(plan, side_files=side_files), checksums, nonfinite)
    store.put(join_url(out, MANIFEST_NAME), to_bytes(manifest))
    return manifest


def known_receipts(plan: Plan, destination: Destination) -> tuple[ShardReceipt, ...]:
    """Receipts of finished shards that need not be read: a complete manifest or the store knows their checksums.

    Those that may hold values that are not finite, while nobody has noted which, are read.
    """
    if destination.may_hold_nonfinite:
        return ()
    told, nonfinite = {}, {}
    if destination.manifest is not None and destination.manifest.plan_digest == plan.digest:
        told = {shard.file_name: shard.crc32 for shard in destination.manifest.shards}
        nonfinite = {shard.file_name: tuple(shard.nonfinite.items()) for shard in destination.manifest.shards}
    kept = destination.kept
    with ThreadPoolExecutor(_CONCURRENT_HEADERS, thread_name_prefix="raymerge-resume") as pool:
        found = dict(zip(kept, pool.map(lambda name: _known_crc32(told.get(name), kept[name]), kept), strict=True))
    return tuple(
        ShardReceipt(
            file_name=name, nbytes=kept[name].nbytes, crc32=checksum, read_bytes=0, nonfinite=nonfinite.get(name, ())
        )
        for name, checksum in found.items()
        if checksum is not None
    )


def _known_crc32(told: int | None, info: ObjectInfo) -> int | None:
    if told is not None or info.crc32 is not None or is_local(info.url):
        return info.crc32 if told is None else told
    asked = store_for(info.url).info(info.url)  # listings name no checksums
    return asked.crc32 if asked.version == info.version else None


def _listing(out: str) -> tuple[ObjectInfo, ...]:
    try:
        return store_for(out).list(out)
    except NotFoundError:
        return ()


def _finished_shards(plan: Plan, infos: Mapping[str, ObjectInfo]) -> dict[str, ObjectInfo]:
    """Shards that are whole and of this plan: right size, and the very header that the plan gives them."""
    present = [shard for shard in plan.shards if shard.file_name in infos]
    with ThreadPoolExecutor(_CONCURRENT_HEADERS, thread_name_prefix="raymerge-resume") as pool:
        verdicts = pool.map(lambda shard: _is_finished(shard, infos[shard.file_name]), present)
        return {
            shard.file_name: infos[shard.file_name]
            for shard, finished in zip(present, verdicts, strict=True)
            if finished
        }


def _is_finished(shard: ShardTask, info: ObjectInfo) -> bool:
    header = shard_header(shard)
    if info.nbytes != len(header) + shard.tensor_bytes:
        return False
    found = bytearray(len(header))
    store_for(info.url).read_into(info.url, found, offset=0, version=info.version)
    return bytes(found) == header


def _read_manifest(out: str) -> tuple[Manifest | None, Problem | None]:
    url = join_url(out, MANIFEST_NAME)
    try:
        return parse_manifest(store_for(out).read(url, max_bytes=MAX_MANIFEST_BYTES), subject=url), None
    except (StorageError, VerifyError) as error:
        return None, error.problems[0]


def _other_plan(out: str, manifest: Manifest, plan: Plan) -> Problem:
    changes = "; ".join(differences(manifest, running_manifest(plan)))
    return Problem(
        subject=out,
        message=f"holds another merge (plan {manifest.plan_digest[:8]}, {manifest.state.value}); differs in: {changes}",
        remedy="choose another folder, or --overwrite to replace it",
    )


def _foreign_weights(out: str, foreign: tuple[str, ...]) -> Problem:
    shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
    return Problem(
        subject=out,
        message=f"holds weight files that are not of this merge: {shown}",
        remedy="choose another folder, or --overwrite to replace them",
    )
