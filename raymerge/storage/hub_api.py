"""The hub's own requests: what a revision holds, and where a file's bytes lie."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from raymerge.errors import AccessError, ChangedError, NotFoundError, Problem, StorageError
from raymerge.storage.http import redirect_target, retry_after_seconds, send_within_host
from raymerge.storage.hub_cache import endpoint
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import Again, Limiter, Patience, attempt
from raymerge.storage.urls import redact

# The hub counts requests over 5 minutes: a throttled client may have to wait for the next window.
HUB_PATIENCE = Patience(tries=10, longest_wait_seconds=60.0, total_seconds=900.0)
api_limiter = PerProcess(lambda: Limiter(8))

_MOST_LISTING_BYTES = 64 << 20
_URL = re.compile(r"hf://(?P<repo>[^/@]+(?:/[^/@]+)?)(?:@(?P<revision>[^/]+))?(?:/(?P<name>.*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPlace:
    """A parsed `hf://org/name@revision/file`; `name` is "" for the model's folder."""

    repo: str
    revision: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a commit. `hash` is the SHA-256 of a large file, git's hash of a small one."""

    name: str
    nbytes: int
    hash: str

    @property
    def identity(self) -> str:
        return f"sha256:{self.hash}" if len(self.hash) == 64 else f"git:{self.hash}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubListing:
    repo: str
    commit: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a file's bytes can be read. `url` may be signed: whoever knows it may read, so it stays in this process."""

    url: str
    own_host: bool
    nbytes: int
    hash: str


@lru_cache(maxsize=4096)
def parse_hub_url(url: str) -> HubPlace:
    match = _URL.fullmatch(url)
    if match is None:
        raise StorageError(Problem(subject=redact(url), message="is not a hub URL", remedy="write hf://org/name@rev"))
    revision = (match["revision"] or "main").replace("%2F", "/")
    return HubPlace(repo=match["repo"], revision=revision, name=(match["name"] or "").strip("/"))


def hub_url(repo: str, commit: str, name: str = "") -> str:
    return f"hf://{repo}@{commit}" + (f"/{name}" if name else "")


def auth_headers() -> dict[str, str]:
    """Headers for the hub itself, with the token that huggingface_hub finds. No other host may see them."""
    token = _token()
    return {"User-Agent": "raymerge", **({"Authorization": f"Bearer {token}"} if token else {})}


def _token() -> str | None:
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def fetch_listing(repo: str, revision: str) -> HubListing:
    """One request: the commit a revision is now, and its files with sizes and hashes."""
    url = f"{endpoint()}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    subject = f"{repo}@{revision}"

    def get() -> HubListing:
        answer, _ = send_within_host("GET", url, auth_headers())
        if answer.status != 200:
            raise hub_error(answer, subject)
        return _listing(repo, _body(answer, subject), subject)

    return attempt(get, url=subject, limiter=api_limiter.get(), patience=HUB_PATIENCE)


def _body(answer: Any, subject: str) -> bytes:
    import urllib3

    try:
        body: bytes = answer.read(_MOST_LISTING_BYTES + 1)
        answer.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Again(f"{type(error).__name__} while reading the answer") from error
    if len(body) > _MOST_LISTING_BYTES:
        raise StorageError(Problem(subject=subject, message="the hub's answer is larger than any list of files"))
    return body


def _listing(repo: str, body: bytes, subject: str) -> HubListing:
    try:
        document = json.loads(body)
        files = tuple(
            HubFile(
                name=item["rfilename"],
                nbytes=int(item["size"]),
                hash=(item.get("lfs") or {}).get("sha256") or item["blobId"],
            )
            for item in document["siblings"]
        )
        return HubListing(repo=repo, commit=document["sha"], files=files)
    except json.JSONDecodeError as error:
        raise Again(f"the hub's answer is not JSON ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            Problem(subject=subject, message=f"the hub's description lacks a field ({type(error).__name__}: {error})")
        ) from error


class Addresses:
    """Addresses of this process, each asked for once, however many threads need it, until it expires.

    Kept by the address that is asked, the hub's own included: a mirror's answers are not the hub's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._known: dict[str, Address] = {}

    def get(self, url: str, *, version: str) -> Address:
        asked = resolve_url(parse_hub_url(url))
        with self._lock:
            lock = self._locks.setdefault(asked, threading.Lock())
        with lock:
            address = self._known.get(asked)
            if address is None:
                address = self._known[asked] = fetch_address(url)
        if version and address.hash != version:
            raise ChangedError(
                Problem(subject=url, message=f"the hub answers with content {address.hash}, {version} was planned")
            )
        return address

    def forget(self, url: str, address: Address) -> None:
        """`address` no longer works; another thread may have replaced it already."""
        asked = resolve_url(parse_hub_url(url))
        with self._lock:
            if self._known.get(asked) is address:
                del self._known[asked]


addresses = PerProcess(Addresses)


def fetch_address(url: str) -> Address:
    """Ask the hub where a file lies, without reading it."""
    place = parse_hub_url(url)
    target = resolve_url(place)

    def head() -> Address:
        answer, final = send_within_host("HEAD", target, auth_headers())
        answer.release_conn()
        moved = redirect_target(answer, final)
        if answer.status != 200 and moved is None:
            raise hub_error(answer, url)
        headers = answer.headers
        commit = headers.get("X-Repo-Commit")
        if commit and commit != place.revision:
            raise ChangedError(Problem(subject=url, message=f"the hub answers with commit {commit}"))
        size = headers.get("X-Linked-Size") or (None if moved else headers.get("Content-Length"))
        if size is None:
            raise Again("the hub did not say how large the file is")
        return Address(
            url=moved or final,
            own_host=moved is None,
            nbytes=int(size),
            hash=_bare(headers.get("X-Linked-Etag") or headers.get("ETag") or ""),
        )

    return attempt(head, url=url, limiter=api_limiter.get(), patience=HUB_PATIENCE)


def resolve_url(place: HubPlace) -> str:
    return f"{endpoint()}/{place.repo}/resolve/{quote(place.revision, safe='')}/{quote(place.name)}"


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def hub_error(answer: Any, subject: str) -> Exception:
    """What a refusal of the hub means: Again, or an error to raise."""
    status, code = answer.status, answer.headers.get("X-Error-Code", "")
    text = redact(answer.headers.get("X-Error-Message", ""))[:300]
    answer.close()
    reason = " ".join(part for part in (str(status), code, text) if part)
    if status in (408, 429) or status >= 500:
        wait = retry_after_seconds(answer.headers) if status == 429 else 0.0
        return Again(f"the hub said {reason}", throttled=status in (429, 503), wait_seconds=wait)
    if status == 401 and text.startswith("Invalid credentials"):
        code = "InvalidToken"
    elif status in (401, 404):
        code = code or "RepoNotFound"
    elif status == 403:
        code = code or "Forbidden"
    return _refusal(code, reason, subject)


def _refusal(code: str, reason: str, subject: str) -> StorageError:
    token = _token() is not None
    whose = "this token" if token else "a request without a token"
    if code == "GatedRepo":
        repo = parse_hub_url(subject).repo if subject.startswith("hf://") else subject.partition("@")[0]
        accept = f"accept its terms on {endpoint()}/{repo}, then run again"
        remedy = accept if token else f"run `hf auth login` or set HF_TOKEN; {accept}"
        return AccessError(Problem(subject=subject, message=f"is gated; {whose} has no access", remedy=remedy))
    known: dict[str, tuple[type[StorageError], str, str]] = {
        "RevisionNotFound": (NotFoundError, "the model has no such revision", ""),
        "EntryNotFound": (NotFoundError, "does not exist", ""),
        "InvalidToken": (AccessError, "the hub does not know this token", "run `hf auth login` again"),
        "Forbidden": (AccessError, f"{whose} has no access ({reason})", "use a token that may read this model"),
        "RepoNotFound": (
            NotFoundError,
            f"does not exist on {endpoint()}, or is private and {whose} has no access",
            "check the name; for a private model run `hf auth login` or set HF_TOKEN",
        ),
    }
    kind, message, remedy = known.get(code, (StorageError, f"the hub said {reason}", ""))
    return kind(Problem(subject=subject, message=message, remedy=remedy))
