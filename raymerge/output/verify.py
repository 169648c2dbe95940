"""Checking an output, or any folder of safetensors: what is there against what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raymerge.checkpoint.header import Entry, parse_header
from raymerge.checkpoint.layout import CONFIG_NAME, INDEX_NAME, SINGLE_NAME
from raymerge.checkpoint.locate import Location
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.open import read_checkpoint, read_header
from raymerge.checkpoint.strict_json import json_object
from raymerge.compute.finite import EXPONENTS, nonfinite_count
from raymerge.errors import NotFoundError, Problem, RaymergeError, VerifyError
from raymerge.output.load_check import check_load, require_loader
from raymerge.output.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardRecord, State, parse_manifest
from raymerge.planning.header import PLAN_KEY
from raymerge.storage import base_name, is_local, join_url, store_for
from raymerge.storage.base import ObjectInfo, Store
from raymerge.storage.crc32 import crc32

_CHUNK_BYTES = 8 * 2**20
_CONCURRENT_SHARDS = 4
_MAX_JSON_BYTES = 256 * 2**20
_RUN_AGAIN = "run the same merge command again"
_DAMAGED = "delete this file, then run the same merge command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was looked at. `checked` and `skipped` are phrases for the user; `problems` is empty where all is well."""

    out: str
    checked: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    shard_count: int = 0
    tensor_count: int = 0
    nbytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class _Findings:
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """A weight file with its header read."""

    info: ObjectInfo
    header: bytes
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


def verify(out_url: str, *, full: bool = False, load: bool = False, trust_remote_code: bool = False) -> VerifyReport:
    """Check the folder at `out_url`. Weights are read where it is local, or with `full`; else headers, sizes and the
    checksums that the store keeps. With `load` transformers builds the model, without its bytes; code of the
    checkpoint itself runs only with `trust_remote_code`. Raises StorageError where the folder itself cannot be read,
    UsageError where `load` needs a library that is not there.
    """
    if load:
        require_loader()
    store = store_for(out_url)
    found = _Findings()
    infos = {base_name(info.url): info for info in store.list(out_url)}
    manifest = _manifest(store, out_url, infos, found)
    _check_json_files(store, out_url, infos, found)
    checkpoint = _check_index(out_url, infos, found)
    if load and checkpoint is not None:
        findings = check_load(checkpoint, trust_remote_code=trust_remote_code)
        found.checked += findings.checked
        found.skipped += findings.skipped
        found.problems += findings.problems
    shards = _read_headers(store, out_url, infos, found)
    if manifest is not None:
        _check_manifest(manifest, infos, shards, out_url, found)
    known = {shard.file_name: shard.crc32 for shard in manifest.shards} if manifest is not None else {}
    if full or is_local(out_url):
        _check_contents(store, shards, known, out_url, found)
    else:
        _check_stored_checksums(store, shards, known, out_url, found)
    return VerifyReport(
        out=out_url,
        checked=tuple(found.checked),
        skipped=tuple(found.skipped),
        problems=tuple(dict.fromkeys(found.problems)),
        shard_count=len(shards),
        tensor_count=len(checkpoint.tensors) if checkpoint is not None else 0,
        nbytes=sum(shard.info.nbytes for shard in shards.values()),
    )


def _manifest(store: Store, out_url: str, infos: Mapping[str, ObjectInfo], found: _Findings) -> Manifest | None:
    subject = join_url(out_url, MANIFEST_NAME)
    if MANIFEST_NAME not in infos:
        found.skipped.append(f"sizes and checksums of a manifest (there is no {MANIFEST_NAME})")
        return None
    try:
        manifest = parse_manifest(store.read(subject, max_bytes=MAX_MANIFEST_BYTES), subject=subject)
    except VerifyError as error:
        found.problems += error.problems
        return None
    if manifest.state is not State.COMPLETE:
        found.problems.append(Problem(subject=subject, message="says that the merge is unfinished", remedy=_RUN_AGAIN))
    return manifest


def _check_json_files(store: Store, out_url: str, infos: Mapping[str, ObjectInfo], found: _Findings) -> None:
    names = [name for name in infos if name.endswith(".json") and name != MANIFEST_NAME]
    for name in names:
        subject = join_url(out_url, name)
        try:
            json_object(store.read(subject, max_bytes=_MAX_JSON_BYTES), subject)
        except RaymergeError as error:
            # sentence-transformers' modules.json and the like hold lists; config.json may not
            if name == CONFIG_NAME or "expected a JSON object" not in str(error):
                found.problems += error.problems
    found.checked.append(f"{len(names)} JSON files parse")


def _check_index(out_url: str, infos: Mapping[str, ObjectInfo], found: _Findings) -> Checkpoint | None:
    """The index against the headers, as for any input."""
    if INDEX_NAME not in infos and SINGLE_NAME not in infos:
        message = "is missing; without it loaders find no model"
        found.problems.append(Problem(subject=join_url(out_url, INDEX_NAME), message=message, remedy=_RUN_AGAIN))
    missing = Problem(subject=out_url, message="holds no model")
    try:
        checkpoint = read_checkpoint(Location(url=out_url, origin="", missing=missing), display=out_url)
    except NotFoundError:
        raise
    except RaymergeError as error:
        found.problems += error.problems
        return None
    found.problems += [Problem(subject=out_url, message=note, remedy=_DAMAGED) for note in checkpoint.notes]
    found.checked.append(
        f"index and headers of {len(checkpoint.files)} shards agree on {len(checkpoint.tensors)} tensors"
    )
    return checkpoint


def _read_headers(store: Store, out_url: str, infos: Mapping[str, ObjectInfo], found: _Findings) -> dict[str, _Shard]:
    shards = {}
    for name, info in infos.items():
        if name.endswith(".safetensors"):
            try:
                shards[name] = _read_header(store, info, join_url(out_url, name))
            except RaymergeError as error:
                found.problems += error.problems
    return shards


def _read_header(store: Store, info: ObjectInfo, subject: str) -> _Shard:
    header = read_header(store, info, subject)
    entries, metadata = parse_header(header, info.nbytes, subject)
    return _Shard(info=info, header=header, entries=tuple(entries), metadata=metadata)


def _check_manifest(
    manifest: Manifest,
    infos: Mapping[str, ObjectInfo],
    shards: Mapping[str, _Shard],
    out_url: str,
    found: _Findings,
) -> None:
    """Every planned shard is there, of its size and plan; no other weights are."""
    for record in manifest.shards:
        fault = _shard_fault(record, manifest.plan_digest, infos, shards)
        if fault:
            subject = join_url(out_url, record.file_name)
            found.problems.append(Problem(subject=subject, message=fault, remedy=_DAMAGED))
    planned = {record.file_name for record in manifest.shards}
    for name in shards:
        if name not in planned:
            subject = join_url(out_url, name)
            found.problems.append(Problem(subject=subject, message="is not of this merge", remedy="remove it"))
    found.checked.append(f"sizes and plan of {len(manifest.shards)} shards against {MANIFEST_NAME}")


def _shard_fault(
    record: ShardRecord, plan_digest: str, infos: Mapping[str, ObjectInfo], shards: Mapping[str, _Shard]
) -> str:
    info = infos.get(record.file_name)
    if info is None:
        return "is missing"
    if info.nbytes != record.nbytes:
        return f"has {info.nbytes} bytes, the manifest says {record.nbytes}"
    shard = shards.get(record.file_name)
    if shard is not None and shard.metadata.get(PLAN_KEY) != plan_digest:
        return f"is of plan {shard.metadata.get(PLAN_KEY, 'unknown')[:8]}, the manifest of {plan_digest[:8]}"
    return ""


def _check_stored_checksums(
    store: Store, shards: Mapping[str, _Shard], known: Mapping[str, int | None], out_url: str, found: _Findings
) -> None:
    compared = 0
    for name in shards:
        expected, stored = known.get(name), store.info(join_url(out_url, name)).crc32
        if expected is None or stored is None:
            continue
        compared += 1
        if stored != expected:
            found.problems.append(_checksum_problem(join_url(out_url, name), stored, expected))
    if compared:
        found.checked.append(f"checksums that the store keeps of {compared} shards")
    if compared < len(shards):
        found.skipped.append(
            f"checksums of {len(shards) - compared} shards (not known to both sides; --full reads them)"
        )
    found.skipped.append("values of tensors (--full reads them)")


def _check_contents(
    store: Store, shards: Mapping[str, _Shard], known: Mapping[str, int | None], out_url: str, found: _Findings
) -> None:
    def scan(name: str) -> list[Problem]:
        return list(_scan(store, shards[name], known.get(name), join_url(out_url, name)))

    with ThreadPoolExecutor(_CONCURRENT_SHARDS) as pool:
        found.problems += [problem for problems in pool.map(scan, shards) for problem in problems]
    found.checked.append("values for infinity and NaN")
    compared = sum(known.get(name) is not None for name in shards)
    if compared:
        found.checked.append(f"checksums of {compared} shards")
    if compared < len(shards):
        found.skipped.append(f"checksums of {len(shards) - compared} shards (no manifest has them)")
    codes = {entry[0].dtype for shard in shards.values() for entry in shard.entries} - set(EXPONENTS)
    if codes:
        found.skipped.append(f"values of type {', '.join(sorted(code.value for code in codes))}")


def _scan(store: Store, shard: _Shard, expected: int | None, subject: str) -> Iterator[Problem]:
    """One pass over a file: its checksum, and the tensors that hold something not finite."""
    checksum = crc32(shard.header)
    for spec, offset in shard.entries:
        bad = 0
        for start in range(0, spec.nbytes, _CHUNK_BYTES):
            chunk = bytearray(min(_CHUNK_BYTES, spec.nbytes - start))
            store.read_into(shard.info.url, chunk, offset=offset + start, version=shard.info.version)
            checksum = crc32(chunk, checksum)
            bad += nonfinite_count(chunk, spec.dtype) if spec.dtype in EXPONENTS else 0
        if bad:
            message = f"tensor {spec.name!r} holds {bad} of {spec.element_count} values that are not finite"
            yield Problem(subject=subject, message=message, remedy="check the inputs for the same tensor")
    if expected is not None and checksum != expected:
        yield _checksum_problem(subject, checksum, expected)


def _checksum_problem(subject: str, found: int, expected: int) -> Problem:
    return Problem(
        subject=subject, message=f"has checksum {found:08x}, the manifest says {expected:08x}", remedy=_DAMAGED
    )
