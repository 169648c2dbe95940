"""Publishing a finished output on the hub: shards one by one, then one commit with the index in it."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raymerge.errors import NotFoundError, PlanError, Problem, StorageError, UsageError, VerifyError
from raymerge.events import Event, Message
from raymerge.output.card import CARD_NAME
from raymerge.output.journal import is_weight_file
from raymerge.output.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardRecord, State, parse_manifest
from raymerge.output.sentence_modules import MODULES_NAME, module_folders
from raymerge.output.side_files import RECIPE_NAME
from raymerge.sizes import format_size
from raymerge.storage import ObjectInfo, base_name, is_local, join_url, store_for
from raymerge.storage.crc32 import crc32
from raymerge.storage.hub_push import (
    Repository,
    Upload,
    check_card,
    open_repository,
    page_url,
    require_token,
    show_progress,
)

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_MAX_SIDE_FILE_BYTES = 256 * 2**20
_CHUNK_BYTES = 8 * 2**20
_RUN_AGAIN = "run the merge command again, then push"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What was published. `kept` shards were in the repository already, with this very content."""

    url: str
    commit: str
    is_private: bool
    shard_count: int
    kept_count: int
    nbytes: int


def push(
    out_url: str,
    repo: str,
    *,
    private: bool = True,
    overwrite: bool = False,
    progress_bars: bool = False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> PushResult:
    """Publish the finished merge at `out_url` as model `repo` ("user/name").

    A shard that is not on a local disk is copied to the temporary folder while it is sent, one at a time. Large files
    that the hub has are not sent again, so the same call continues one that was cut short; nothing shows before the
    one commit at the end. Raises VerifyError for an output that is not whole, PlanError for a repository that holds
    something else, AccessError for a token that may not.
    """
    repo = check_repo(repo)
    require_token(repo)
    show_progress(progress_bars)
    manifest, infos = _finished(out_url)
    card = _card(out_url, infos)
    if card is not None:
        check_card(repo, card)
    found = open_repository(repo, private=private)
    stale = check_repository(found, manifest.plan_digest, infos, private=private, overwrite=overwrite)
    if not private:
        _warn_of_places(manifest, on_event)
    upload = Upload(seen=found)
    kept = 0
    for shard in manifest.shards:
        kept += _send_shard(upload, infos[shard.file_name], shard, on_event)
    shards = {shard.file_name for shard in manifest.shards}
    for name, data in side_files_of(out_url, infos, shards):
        upload.add(name, data)
    for name in stale:
        upload.delete(name)
    commit = upload.commit(f"Add merge {manifest.plan_digest[:12]}")
    return PushResult(
        url=page_url(repo),
        commit=commit,
        is_private=found.is_private,
        shard_count=len(manifest.shards),
        kept_count=kept,
        nbytes=manifest.nbytes,
    )


def check_repo(repo: str) -> str:
    """`user/name`, with or without hf:// in front. Raises UsageError for anything else."""
    name = repo.removeprefix("hf://").rstrip("/")
    if not _REPO.fullmatch(name):
        raise UsageError(Problem(subject=repo, message="is no model on the hub", remedy="write it as user/name"))
    return name


def _finished(out_url: str) -> tuple[Manifest, Mapping[str, ObjectInfo]]:
    """The manifest of an output that is whole, and what lies in its folder."""
    store = store_for(out_url)
    try:
        infos = {base_name(info.url): info for info in store.list(out_url)}
    except NotFoundError:
        infos = {}
    if MANIFEST_NAME not in infos:
        message = f"is no output of a merge: there is no {MANIFEST_NAME}"
        raise VerifyError(Problem(subject=out_url, message=message, remedy="name the folder that a merge wrote"))
    subject = join_url(out_url, MANIFEST_NAME)
    manifest = parse_manifest(store.read(subject, max_bytes=MAX_MANIFEST_BYTES), subject=subject)
    if manifest.state is not State.COMPLETE:
        raise VerifyError(Problem(subject=out_url, message="the merge is unfinished", remedy=_RUN_AGAIN))
    problems = [
        Problem(subject=join_url(out_url, shard.file_name), message="is missing or has another size", remedy=_RUN_AGAIN)
        for shard in manifest.shards
        if shard.file_name not in infos or infos[shard.file_name].nbytes != shard.nbytes
    ]
    own = {shard.file_name for shard in manifest.shards}
    problems += [
        Problem(subject=join_url(out_url, name), message="is not of this merge", remedy="move it elsewhere")
        for name in infos
        if is_weight_file(name) and not name.endswith(".json") and name not in own
    ]
    if problems:
        raise VerifyError(*problems)
    return manifest, infos


def _warn_of_places(manifest: Manifest, on_event: Callable[[Event], None]) -> None:
    """The card names no place of an input; what tools read must."""
    places = [each.reference for each in manifest.inputs if each.hub_id is None]
    if places:
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        text = f"everyone will see where inputs lay ({places[0]}{more}) in {MANIFEST_NAME} and {RECIPE_NAME}"
        on_event(Message(text=text, level="warning"))


def _card(out_url: str, infos: Mapping[str, ObjectInfo]) -> str | None:
    if CARD_NAME not in infos:
        return None
    return store_for(out_url).read(infos[CARD_NAME].url, max_bytes=_MAX_SIDE_FILE_BYTES).decode("utf-8", "replace")


def check_repository(
    found: Repository, plan_digest: str, ours: Collection[str], *, private: bool, overwrite: bool
) -> tuple[str, ...]:
    """Files of the repository to remove. Raises PlanError where it is not as asked, or holds something else."""
    problems = []
    if found.is_private is not private:
        said, other = ("private", "public") if found.is_private else ("public", "private")
        remedy = f"add --{said} to push there all the same, or make it {other} in its settings"
        problems.append(Problem(subject=found.repo, message=f"exists and is {said}", remedy=remedy))
    weights = [name for name in found.files if "/" not in name and is_weight_file(name)]
    shown = published_manifest(found)
    published = shown.plan_digest if shown is not None else ""
    if not overwrite and (published or weights) and published != plan_digest:
        what = f"another merge (plan {published[:8]})" if published else f"other weights ({min(weights)})"
        remedy = "choose another name, or --overwrite to replace them in one commit"
        problems.append(Problem(subject=found.repo, message=f"holds {what}", remedy=remedy))
    if problems:
        raise PlanError(*problems)
    return tuple(name for name in weights if name not in ours)


def published_manifest(found: Repository) -> Manifest | None:
    """The manifest of the merge that the repository holds; None where there is none."""
    if MANIFEST_NAME not in found.files:
        return None
    url = f"hf://{found.repo}@{found.commit}/{MANIFEST_NAME}"
    try:
        return parse_manifest(store_for(url).read(url, max_bytes=MAX_MANIFEST_BYTES), subject=url)
    except VerifyError:  # something else of that name: other weights are looked for by themselves
        return None


def _send_shard(upload: Upload, info: ObjectInfo, shard: ShardRecord, on_event: Callable[[Event], None]) -> bool:
    """Whether the repository has the shard already; else it is sent, or its content found on the hub."""
    name, present = shard.file_name, upload.seen.files
    with _on_disk(info) as path:
        sha256 = _checked_sha256(path, shard)
        if name in present and present[name].hash == sha256.hex():
            upload.keep(name, sha256=sha256)
            on_event(Message(text=f"{name}: in the repository already"))
            return True
        upload.send(name, path, sha256=sha256)
    on_event(Message(text=f"{name}: {format_size(shard.nbytes)} uploaded"))
    return False


@contextmanager
def _on_disk(info: ObjectInfo) -> Iterator[Path]:
    """The object as a local file, for as long as the context lasts."""
    if is_local(info.url):
        yield Path(info.url)
        return
    with tempfile.TemporaryDirectory(prefix="raymerge-push-") as folder:
        free = shutil.disk_usage(folder).free
        if free < info.nbytes:
            message = f"has {format_size(free)} free, a shard of {format_size(info.nbytes)} passes through it"
            raise StorageError(Problem(subject=folder, message=message, remedy="set TMPDIR to a larger disk"))
        path = Path(folder) / base_name(info.url)
        _download(info, path)
        yield path


def _download(info: ObjectInfo, path: Path) -> None:
    store = store_for(info.url)
    buffer = bytearray(min(_CHUNK_BYTES * 8, info.nbytes))
    with path.open("wb") as file, memoryview(buffer) as view:
        for offset in range(0, info.nbytes, max(1, len(buffer))):
            part = view[: min(len(buffer), info.nbytes - offset)]
            store.read_into(info.url, part, offset=offset, version=info.version)
            file.write(part)


def _checked_sha256(path: Path, shard: ShardRecord) -> bytes:
    """The file's SHA-256; raises VerifyError where its CRC-32 is not the manifest's."""
    sha, crc, buffer = hashlib.sha256(), 0, bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file, memoryview(buffer) as view:
        while count := file.readinto(buffer):
            sha.update(view[:count])
            crc = crc32(view[:count], crc)
    if shard.crc32 is not None and crc != shard.crc32:
        message = f"has checksum {crc:08x}, the manifest says {shard.crc32:08x}"
        raise VerifyError(Problem(subject=shard.file_name, message=message, remedy=_RUN_AGAIN))
    return sha.digest()


def side_files_of(out_url: str, infos: Mapping[str, ObjectInfo], shards: set[str]) -> Iterator[tuple[str, bytes]]:
    """The small files by their path in the output; those of folders that modules.json names too."""
    store = store_for(out_url)
    for name, info in infos.items():
        if name in shards or name.startswith("."):
            continue
        data = store.read(info.url, max_bytes=_MAX_SIDE_FILE_BYTES)
        yield name, data
        if name == MODULES_NAME:
            for folder in module_folders(data, subject=join_url(out_url, name)):
                yield from _folder(out_url, folder)


def _folder(out_url: str, folder: str) -> Iterator[tuple[str, bytes]]:
    store = store_for(out_url)
    try:
        infos = store.list(join_url(out_url, folder))
    except NotFoundError:  # modules without settings need have no folder
        return
    for info in infos:
        yield f"{folder}/{base_name(info.url)}", store.read(info.url, max_bytes=_MAX_SIDE_FILE_BYTES)
