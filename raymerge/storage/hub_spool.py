"""Writing a model to the hub: each shard passes through a folder of this machine and is sent ahead of the one commit.

A spool is a local folder for one repository. Small files lie in it. A shard lies there while it is written; then it is
sent to the hub, where nothing shows it yet, and what a later run must know of it stays: size, checksums and header.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raymerge.errors import NotFoundError, Problem, StorageError, UsageError
from raymerge.storage import hub_cache
from raymerge.storage.base import CopyRange, ObjectInfo, ObjectWriter, Store
from raymerge.storage.hub_api import parse_hub_url
from raymerge.storage.local import LocalStore
from raymerge.storage.urls import base_name, join_url, parent_url, scheme_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

SCHEME = "hf-spool"
VARIABLE = "RAYMERGE_SPOOL"
_AHEAD = ".safetensors"  # what is sent ahead; the hub keeps such files as large ones, whatever their size
_SENT_FOLDER = ".sent"
_HASH_BLOCK_BYTES = 8 << 20
_MAX_RECORD_BYTES = 1 << 16
_LENGTH_BYTES = 8
_KEPT_BYTES = 256 << 10  # of every file sent: as many as readers of remote headers ask for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """A file whose content the hub has, though no commit shows it; hashes in hexadecimal."""

    nbytes: int
    sha256: str
    crc32: int | None


def written_at(out: str) -> str:
    """Where a merge to `out` is written: the spool of a repository for `hf://user/name`, else `out` itself.

    Raises UsageError for a revision or a file of a repository.
    """
    if scheme_of(out) != "hf":
        return out
    place = parse_hub_url(out)
    if "@" in out or place.name or "/" not in place.repo:
        remedy = f"write hf://{place.repo}" if "/" in place.repo else "write hf://user/name"
        raise UsageError(
            Problem(subject=out, message="is no place for an output: it goes to a whole model", remedy=remedy)
        )
    host = urlsplit(hub_cache.endpoint()).netloc.replace(":", "-")
    return f"{SCHEME}://{_root() / host / place.repo}"


def in_progress_at(out: str) -> str:
    """Where a merge to `out` stands until it is finished: the spool of `hf://user/name` if there is one, else `out`."""
    try:
        spool = written_at(out)
    except UsageError:  # a revision, which is never written to
        return out
    return spool if Path(spool_folder(spool)).exists() else out


def spool_folder(url: str) -> str:
    """The local folder of a spool; other URLs as they are."""
    return url.removeprefix(f"{SCHEME}://") if scheme_of(url) == SCHEME else url


def sent_file(url: str) -> SentFile | None:
    """What a spool knows of a file that was sent ahead."""
    path = _record(url)
    try:
        found = json.loads(LocalStore().read(path, max_bytes=_MAX_RECORD_BYTES))
        return SentFile(nbytes=int(found["nbytes"]), sha256=str(found["sha256"]), crc32=found["crc32"])
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        remedy = "delete it, then run the same command again"
        raise StorageError(Problem(subject=path, message=f"is damaged ({error})", remedy=remedy)) from error


class SpoolStore(Store):
    """A spool as the folder that it stands for; `version` and `identity` of a file sent ahead are its SHA-256."""

    def __init__(self) -> None:
        self._local = LocalStore()

    def __reduce__(self) -> tuple[type[SpoolStore], tuple[()]]:
        return (SpoolStore, ())

    def buffered_bytes(self, nbytes: int) -> int:
        return max(self._local.buffered_bytes(nbytes), _HASH_BLOCK_BYTES)

    def info(self, url: str) -> ObjectInfo:
        sent = sent_file(url)
        return _info(url, sent) if sent is not None else _renamed(self._local.info(spool_folder(url)))

    def list(self, url: str) -> tuple[ObjectInfo, ...]:
        plain = [_renamed(info) for info in self._local.list(spool_folder(url)) if base_name(info.url)[0] != "."]
        try:
            records = self._local.list(spool_folder(join_url(url, _SENT_FOLDER)))
        except NotFoundError:
            records = ()
        names = [base_name(info.url).removesuffix(".json") for info in records if info.url.endswith(".json")]
        sent = [self.info(join_url(url, name)) for name in names]
        return tuple(sorted((*plain, *sent), key=lambda info: info.url))

    def read(self, url: str, *, max_bytes: int) -> bytes:
        return self._local.read(spool_folder(url), max_bytes=max_bytes)

    def read_into(self, url: str, buffer: Buffer, *, offset: int, version: str) -> None:
        if sent_file(url) is None:
            self._local.read_into(spool_folder(url), buffer, offset=offset, version=version)
            return
        self._local.read_into(_header(url), buffer, offset=offset, version="")

    def create(self, url: str, *, nbytes: int) -> ObjectWriter:
        if not url.endswith(_AHEAD):
            return self._local.create(spool_folder(url), nbytes=nbytes)
        self.delete(url)
        return SpoolWriter(url, self._local.create(spool_folder(url), nbytes=nbytes))

    def delete(self, url: str) -> None:
        for path in (_record(url), _header(url), spool_folder(url)):
            self._local.delete(path)

    def probe(self, url: str, *, nbytes: int) -> None:  # noqa: ARG002 (what passes through needs room for itself alone)
        from raymerge.storage.hub_push import require_token

        require_token(spool_repo(url))
        self._local.probe(spool_folder(url), nbytes=0)

    def put_new(self, url: str, data: bytes) -> bool:
        return self._local.put_new(spool_folder(url), data)

    def unfinished(self, url: str) -> tuple[str, ...]:
        return self._local.unfinished(spool_folder(url))

    def clean(self, url: str, *, names: tuple[str, ...]) -> int:
        return self._local.clean(spool_folder(url), names=names)


class SpoolWriter(ObjectWriter):
    """Writes a local file; `commit` sends it, notes that it was sent, and removes it."""

    def __init__(self, url: str, inner: ObjectWriter) -> None:
        self._url = url
        self._inner = inner

    def write(self, data: Buffer, *, crc32: int | None = None) -> None:
        self._inner.write(data, crc32=crc32)

    def copy(self, source: CopyRange) -> None:
        self._inner.copy(source)

    def commit(self) -> ObjectInfo:
        from raymerge.storage.hub_push import send_ahead

        written = self._inner.commit()
        path = Path(written.url)
        sha256 = _sha256(path)
        name = path.name
        if not send_ahead(spool_repo(parent_url(self._url)), name, path, sha256=sha256):
            return _renamed(written)  # it goes with the commit
        _keep_header(path, Path(_header(self._url)))
        sent = SentFile(nbytes=written.nbytes, sha256=sha256.hex(), crc32=written.crc32)
        LocalStore().put(_record(self._url), json.dumps(asdict(sent)).encode())
        path.unlink()
        return _info(self._url, sent)

    def abort(self) -> None:
        self._inner.abort()


def spool_repo(url: str) -> str:
    """The repository of a spool."""
    return "/".join(spool_folder(url).rstrip("/").split("/")[-2:])


def _root() -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "raymerge" / "hub"


def _record(url: str) -> str:
    return spool_folder(join_url(join_url(parent_url(url), _SENT_FOLDER), f"{base_name(url)}.json"))


def _header(url: str) -> str:
    return spool_folder(join_url(join_url(parent_url(url), _SENT_FOLDER), f"{base_name(url)}.header"))


def _info(url: str, sent: SentFile) -> ObjectInfo:
    return ObjectInfo(
        url=url, nbytes=sent.nbytes, version=sent.sha256, identity=f"sha256:{sent.sha256}", crc32=sent.crc32
    )


def _renamed(info: ObjectInfo) -> ObjectInfo:
    return ObjectInfo(
        url=f"{SCHEME}://{info.url}",
        nbytes=info.nbytes,
        version=info.version,
        identity=info.identity,
        crc32=info.crc32,
        modified=info.modified,
    )


def _sha256(path: Path) -> bytes:
    digest, buffer = hashlib.sha256(), bytearray(_HASH_BLOCK_BYTES)
    with path.open("rb", buffering=0) as file, memoryview(buffer) as view:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.digest()


def _keep_header(path: Path, to: Path) -> None:
    with path.open("rb") as file:
        length = file.read(_LENGTH_BYTES)
        header = file.read(max(int.from_bytes(length, "little"), _KEPT_BYTES - _LENGTH_BYTES))
    LocalStore().put(str(to), length + header)
