"""Models of the Hugging Face hub: ranges at a pinned commit, or the local hub cache for files that lie in it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymerge.errors import NotFoundError, Problem, StorageError
from raymerge.storage import hub_cache
from raymerge.storage.base import Lent, ObjectInfo, ObjectWriter, Store
from raymerge.storage.http import fill, redirect_target, retry_after_seconds, send, send_within_host
from raymerge.storage.hub_api import (
    HUB_PATIENCE,
    HubFile,
    HubListing,
    HubPlace,
    addresses,
    auth_headers,
    fetch_listing,
    hub_error,
    hub_url,
    parse_hub_url,
    resolve_url,
)
from raymerge.storage.local import LocalStore
from raymerge.storage.process import PerProcess, forks
from raymerge.storage.retry import Again, Limiter, attempt
from raymerge.storage.transfer import PART_BYTES, READ_THREADS, read_parts
from raymerge.storage.urls import redact

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Apart from the limiter of the hub's own requests, which a read may need while it counts against this one.
_read_limiter = PerProcess(lambda: Limiter(READ_THREADS))

_EXPIRED = (400, 401, 403, 404, 410)  # what storage behind signed addresses answers when one is too old


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model with its commit pinned. `url` is the folder for `store_for`; `origin` says where its bytes lie now."""

    repo: str
    commit: str
    url: str
    origin: str
    files: tuple[HubFile, ...]


def resolve_model(path: str, revision: str | None = None) -> HubModel:
    """Pin `org/name` or `hf://org/name[@revision]`: one request, or none for a commit that is in the local cache.

    Raises NotFoundError, AccessError (gated, token), TransientStorageError.
    """
    place = parse_hub_url(path if path.startswith("hf://") else f"hf://{path}")
    listing = _listing(place.repo, revision or place.revision)
    names = tuple(file.name for file in listing.files)
    cached = hub_cache.has_weights(listing.repo, listing.commit, names)
    return HubModel(
        repo=listing.repo,
        commit=listing.commit,
        url=hub_url(listing.repo, listing.commit),
        origin="hub cache" if cached else "range-read",
        files=listing.files,
    )


def keep_input(url: str) -> None:
    """Download a file of the hub into the local hub cache, where later reads and other programs find it."""
    from huggingface_hub import hf_hub_download

    place = _pinned(url)
    try:
        with forks.get().shared():
            hf_hub_download(
                place.repo,
                place.name,
                revision=place.revision,
                endpoint=hub_cache.endpoint(),
                cache_dir=hub_cache.cache_folder(),
                library_name="raymerge",
            )
    except Exception as error:  # its transport, and so its errors, differ from version to version
        reason = redact(str(error)).strip().splitlines()
        raise StorageError(
            Problem(subject=url, message=f"the download failed: {type(error).__name__}: {(reason or [''])[0]}")
        ) from error


class HubStore(Store):
    """Reads only. Versions are content hashes: the same bytes in the cache, on any commit, have the same one."""

    def __reduce__(self) -> tuple[type[HubStore], tuple[()]]:
        return (HubStore, ())

    def info(self, url: str) -> ObjectInfo:
        place = _pinned(url)
        local = hub_cache.cached_file(place.repo, place.revision, place.name)
        if local is not None and (content := hub_cache.content_hash(local)):
            return _object(place, HubFile(name=place.name, nbytes=local.stat().st_size, hash=content))
        for file in _listing(place.repo, place.revision).files:
            if file.name == place.name:
                return _object(place, file)
        raise NotFoundError(Problem(subject=url, message="does not exist"))

    def list(self, url: str) -> tuple[ObjectInfo, ...]:
        place = _pinned(url)
        prefix = f"{place.name}/" if place.name else ""
        inside = [
            file
            for file in _listing(place.repo, place.revision).files
            if file.name.startswith(prefix) and "/" not in file.name[len(prefix) :]
        ]
        return tuple(_object(place, file) for file in sorted(inside, key=lambda file: file.name))

    def read(self, url: str, *, max_bytes: int) -> bytes:
        place = _pinned(url)
        local = hub_cache.cached_file(place.repo, place.revision, place.name)
        if local is not None:
            return LocalStore().read(str(local), max_bytes=max_bytes)
        _refuse_offline(url)
        return attempt(
            lambda: _read_whole(place, url, max_bytes), url=url, limiter=_read_limiter.get(), patience=HUB_PATIENCE
        )

    def lend(self, url: str, *, offset: int, nbytes: int, version: str) -> Lent | None:
        place = _pinned(url)
        local = hub_cache.cached_file(place.repo, place.revision, place.name)
        if local is None or not _is_content(local, version):
            return None
        return LocalStore().lend(str(local), offset=offset, nbytes=nbytes, version="")

    def read_into(self, url: str, buffer: Buffer, *, offset: int, version: str) -> None:
        place = _pinned(url)
        pinned = hub_url(place.repo, place.revision, place.name)
        local = hub_cache.cached_file(place.repo, place.revision, place.name)
        if local is not None and _is_content(local, version):
            LocalStore().read_into(str(local), buffer, offset=offset, version="")
            return
        _refuse_offline(url)

        def fetch(view: memoryview, start: int, stop: threading.Event) -> None:
            attempt(
                lambda: _read_range(pinned, view, start, stop, version),
                url=url,
                limiter=_read_limiter.get(),
                stop=stop,
                patience=HUB_PATIENCE,
            )

        with memoryview(buffer).cast("B") as whole:
            read_parts(fetch, whole, offset)

    def create(self, url: str, *, nbytes: int) -> ObjectWriter:  # noqa: ARG002
        raise _read_only(url)

    def delete(self, url: str) -> None:
        raise _read_only(url)

    def probe(self, url: str, *, nbytes: int) -> None:  # noqa: ARG002
        raise _read_only(url)

    def clean(self, url: str, *, names: tuple[str, ...]) -> int:  # noqa: ARG002
        raise _read_only(url)


class _Listings:
    """What this process learned of commits; a commit never changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], HubListing] = {}

    def get(self, repo: str, revision: str) -> HubListing:
        key = (hub_cache.endpoint(), repo, revision)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = _find_listing(repo, revision)
            with self._lock:
                self._known[hub_cache.endpoint(), repo, known.commit] = known
        return known


_listings = PerProcess(_Listings)


def _listing(repo: str, revision: str) -> HubListing:
    return _listings.get().get(repo, revision)


def _find_listing(repo: str, revision: str) -> HubListing:
    commit = hub_cache.cached_commit(repo, revision)
    if hub_cache.is_offline():
        if commit is None:
            raise _offline_error(f"{repo}@{revision}")
        return _cached_listing(repo, commit)
    # A cached commit needs no request if nothing of use can be missing: a snapshot holds what was asked for, which may
    # have been the weights alone.
    if commit == revision and hub_cache.has_weights(repo, commit) and hub_cache.has_tokenizer(repo, commit):
        return _cached_listing(repo, commit)
    return fetch_listing(repo, revision)


def _cached_listing(repo: str, commit: str) -> HubListing:
    folder = hub_cache.snapshot_folder(repo, commit)
    files = []
    for name in hub_cache.file_names(repo, commit):
        path: Path = folder / name
        content = hub_cache.content_hash(path) or f"{commit}:{name}"
        files.append(HubFile(name=name, nbytes=path.stat().st_size, hash=content))
    return HubListing(repo=repo, commit=commit, files=tuple(files))


def _pinned(url: str) -> HubPlace:
    place = parse_hub_url(url)
    if hub_cache.COMMIT.fullmatch(place.revision):
        return place
    return replace(place, revision=_listing(place.repo, place.revision).commit)


def _object(place: HubPlace, file: HubFile) -> ObjectInfo:
    return ObjectInfo(
        url=hub_url(place.repo, place.revision, file.name),
        nbytes=file.nbytes,
        version=file.hash,
        identity=file.identity,
    )


def _read_whole(place: HubPlace, url: str, max_bytes: int) -> bytes:
    answer, final = send_within_host("GET", resolve_url(place), auth_headers())
    moved = redirect_target(answer, final)
    if moved is not None:
        answer.release_conn()
        answer = send("GET", moved, {})
    if answer.status != 200:
        raise _refusal(answer, url, own_host=moved is None)
    size = int(answer.headers.get("Content-Length", "-1"))
    if size > max_bytes:
        answer.close()
        raise StorageError(Problem(subject=url, message=f"holds {size:,} bytes, at most {max_bytes:,} were expected"))
    if size < 0:
        answer.close()
        raise Again("the hub did not say how large the file is")
    buffer = bytearray(size)
    fill(answer, memoryview(buffer), threading.Event(), url)
    answer.release_conn()
    return bytes(buffer)


def _is_content(cached: Path, version: str) -> bool:
    """Whether a file of the cache is the planned one.

    Where the cache holds copies instead of links, the commit in the path vouches for the content.
    """
    return not version or hub_cache.content_hash(cached) in ("", version)


def _read_range(url: str, view: memoryview, start: int, stop: threading.Event, version: str) -> None:
    address = addresses.get().get(url, version=version)
    end = start + len(view)
    if end > address.nbytes:
        raise StorageError(
            Problem(subject=url, message=f"ends at byte {address.nbytes:,}, bytes {start:,} to {end:,} were expected")
        )
    headers = auth_headers() if address.own_host else {}
    answer = send("GET", address.url, {**headers, "Range": f"bytes={start}-{end - 1}"})
    if answer.status in _EXPIRED and not address.own_host:
        answer.close()
        addresses.get().forget(url, address)
        raise Again(f"the address of the file expired ({answer.status})")
    found = answer.headers.get("Content-Range", "")
    if answer.status == 206 and found == f"bytes {start}-{end - 1}/{address.nbytes}":
        fill(answer, view, stop, url)
    elif answer.status == 200 and address.nbytes <= PART_BYTES:  # small files come whole from some mirrors
        whole = bytearray(address.nbytes)
        fill(answer, memoryview(whole), stop, url)
        view[:] = whole[start:end]
    elif answer.status in (200, 206):
        answer.close()
        raise Again(f"asked for bytes {start}-{end - 1}, got status {answer.status} with range {found or 'missing'}")
    else:
        raise _refusal(answer, url, own_host=address.own_host)
    answer.release_conn()


def _refusal(answer: Any, url: str, *, own_host: bool) -> Exception:
    if own_host:
        return hub_error(answer, url)
    answer.close()
    message = f"the storage behind the hub said {answer.status}"
    if answer.status in (408, 429) or answer.status >= 500:
        throttled = answer.status in (429, 503)
        return Again(message, throttled=throttled, wait_seconds=retry_after_seconds(answer.headers))
    return StorageError(Problem(subject=url, message=message))


def _refuse_offline(url: str) -> None:
    if hub_cache.is_offline():
        raise _offline_error(url)


def _offline_error(subject: str) -> NotFoundError:
    return NotFoundError(
        Problem(
            subject=subject,
            message=f"is not in the hub cache ({hub_cache.cache_folder()}), and HF_HUB_OFFLINE is set",
            remedy="unset it, or fill the cache first with `hf download`",
        )
    )


def _read_only(url: str) -> StorageError:
    return StorageError(
        Problem(
            subject=url,
            message="a commit of the hub cannot be written to",
            remedy=f"merge to hf://{parse_hub_url(url).repo}, or: raymerge push OUT {parse_hub_url(url).repo}",
        )
    )
