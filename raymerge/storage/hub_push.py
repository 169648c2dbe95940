"""Writing to a model repository on the hub: large files ahead, one by one, then one commit that shows them all."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from raymerge.errors import AccessError, ChangedError, NotFoundError, Problem, RaymergeError, StorageError
from raymerge.storage import hub_cache
from raymerge.storage.http import retry_after_seconds
from raymerge.storage.hub_api import HubFile
from raymerge.storage.process import PerProcess, forks
from raymerge.storage.retry import Again, Limiter, Patience, attempt
from raymerge.storage.urls import redact

T = TypeVar("T")

# huggingface_hub tries most requests five times itself; on top of that a throttled client waits for the next window
# of five minutes, in which the hub counts.
PUSH_PATIENCE = Patience(tries=6, first_wait_seconds=1.0, longest_wait_seconds=60.0, total_seconds=1800.0)
_limiter = PerProcess(lambda: Limiter(1))
_NEEDS_WRITE = "use a token with write access to it: `hf auth login`, or HF_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A model repository as its main branch is now; `files` by name."""

    repo: str
    commit: str
    is_private: bool
    files: Mapping[str, HubFile]


@dataclass(slots=True)
class Upload:
    """One commit in the making, on top of what was `seen`.

    Large files that were sent stay on the hub, so a later try need not send them again.
    """

    seen: Repository
    _operations: list[Any] = field(default_factory=list)
    _hashes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each file as it will be, of either kind

    def send(self, name: str, path: Path, *, sha256: bytes) -> None:
        """Send a large file's content, unless the hub has content of this hash; the file is not needed afterwards."""
        self._operations.append(_sent(self.seen.repo, name, path, sha256))
        self.keep(name, sha256=sha256)

    def show(self, name: str, *, nbytes: int, sha256: bytes) -> None:
        """A large file that `send_ahead` sent, maybe from another process."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.lfs import UploadInfo

        addition: Any = CommitOperationAdd(path_in_repo=name, path_or_fileobj=b"")
        addition.upload_info = UploadInfo(sha256=sha256, size=nbytes, sample=b"")
        # So does the library mark what it has uploaded; there is nothing left to upload from.
        addition._upload_mode, addition._should_ignore, addition._is_uploaded = "lfs", False, True  # noqa: SLF001
        self._operations.append(addition)
        self.keep(name, sha256=sha256)

    def keep(self, name: str, *, sha256: bytes) -> None:
        """A large file that the repository has already."""
        self._hashes[name] = (sha256.hex(),)

    def add(self, name: str, data: bytes) -> None:
        """A small file, sent with the commit unless the repository has it already."""
        from huggingface_hub import CommitOperationAdd

        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)  # git's name of it
        self._hashes[name] = (git.hexdigest(), hashlib.sha256(data).hexdigest())
        if name not in self.seen.files or self.seen.files[name].hash not in self._hashes[name]:
            self._operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=data))

    def delete(self, name: str) -> None:
        from huggingface_hub import CommitOperationDelete

        self._operations.append(CommitOperationDelete(path_in_repo=name))

    def commit(self, message: str) -> str:
        """Make everything visible at once; returns the commit, the one that was seen where nothing is new.

        Raises ChangedError where another commit came between.
        """
        repo, parent = self.seen.repo, self.seen.commit

        def run() -> str:
            now = _look(repo)
            if now is None or now.commit != parent:
                if now is not None and self._is_in(now):  # an earlier try went through, and its answer was lost
                    return now.commit
                raise _changed(repo)
            made = _api().create_commit(repo, operations=self._operations, commit_message=message, parent_commit=parent)
            return str(made.oid)

        return _call(run, repo) if self._operations else parent

    def _is_in(self, found: Repository) -> bool:
        """Whether the commit holds what this one would."""
        files = found.files
        gone = {operation.path_in_repo for operation in self._operations} - self._hashes.keys()
        return not gone & files.keys() and all(
            name in files and files[name].hash in hashes for name, hashes in self._hashes.items()
        )


def send_ahead(repo: str, name: str, path: Path, *, sha256: bytes) -> bool:
    """Send a large file's content, unless the hub has it; nothing shows it before a commit does.

    False where the hub wants the file in the commit itself: a small one, by the repository's own rules.
    """
    show_progress(False)
    return not _sent(repo, name, path, sha256).path_or_fileobj


def _sent(repo: str, name: str, path: Path, sha256: bytes) -> Any:
    from huggingface_hub import CommitOperationAdd

    def run() -> Any:
        addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        addition.upload_info.sha256 = sha256
        _api().preupload_lfs_files(repo, additions=[addition])
        if addition.path_or_fileobj:  # the hub wants it in the commit itself: a small file of a repository's rules
            addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=path.read_bytes())
        return addition

    return _call(run, f"{repo}/{name}")


def require_token(repo: str) -> None:
    """Raises AccessError where no token is known, before anything is asked of the hub."""
    from huggingface_hub import get_token

    if hub_cache.is_offline():
        raise StorageError(Problem(subject=repo, message="HF_HUB_OFFLINE is set", remedy="unset it to push"))
    if get_token() is None:
        raise AccessError(
            Problem(
                subject=repo,
                message="pushing needs a token of the hub, and none is known",
                remedy="run `hf auth login`, or set HF_TOKEN; the token needs write access",
            )
        )


def find_repository(repo: str) -> Repository | None:
    """The repository, None where there is none that this token may see."""
    return _call(lambda: _look(repo), repo)


def _look(repo: str) -> Repository | None:
    try:
        info = _api().model_info(repo, files_metadata=True)
    except OSError as error:  # the library's HTTP errors
        if _status(error) == 404:
            return None
        raise
    files = (_file(each) for each in info.siblings or ())
    return Repository(
        repo=repo,
        commit=str(info.sha),
        is_private=bool(info.private),
        files={file.name: file for file in files},
    )


def open_repository(repo: str, *, private: bool) -> Repository:
    """The repository, made if there is none. Raises AccessError where this token may not make it."""
    found = find_repository(repo)
    if found is not None:
        return found
    _call(lambda: _api().create_repo(repo, private=private, exist_ok=True), repo)
    made = find_repository(repo)
    if made is None:
        raise NotFoundError(Problem(subject=repo, message="cannot be seen by this token", remedy=_NEEDS_WRITE))
    return made


def show_progress(wanted: bool) -> None:
    """Whether huggingface_hub draws bars on standard error while it uploads."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an environment variable has decided already
        (utils.enable_progress_bars if wanted else utils.disable_progress_bars)()


def check_card(repo: str, text: str) -> None:
    """Raises StorageError with what the hub has against a model card's metadata; it would refuse the commit for it."""

    def run() -> None:
        from huggingface_hub import get_session

        answer: Any = get_session().post(
            f"{hub_cache.endpoint()}/api/validate-yaml", json={"content": text, "repoType": "model"}
        )
        if answer.status_code not in (200, 400):
            raise _verdict(answer, repo)
        told = [str(each.get("message")) for each in answer.json().get("errors", ())]
        if told or answer.status_code == 400:
            raise StorageError(
                Problem(
                    subject="README.md",
                    message=f"the hub refuses its metadata: {redact('; '.join(told) or 'no reason given')[:300]}",
                    remedy="correct the lines between the first two ---, or remove the file",
                )
            )

    _call(run, repo)


def page_url(repo: str) -> str:
    return f"{hub_cache.endpoint()}/{repo}"


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_cache.endpoint(), library_name="raymerge")


def _file(told: Any) -> HubFile:
    return HubFile(
        name=told.rfilename, nbytes=int(told.size or 0), hash=str(told.lfs["sha256"] if told.lfs else told.blob_id)
    )


def _call(run: Callable[[], T], subject: str) -> T:
    def once() -> T:
        try:
            with forks.get().shared(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the library's about itself, and the hub's advice on cards
                return run()
        except (RaymergeError, Again):
            raise
        except Exception as error:  # the library and its transports raise of all kinds, from version to version
            raise _meaning(error, subject) from error

    return attempt(once, url=subject, limiter=_limiter.get(), patience=PUSH_PATIENCE)


def _meaning(error: BaseException, subject: str) -> Exception:
    """Again, or an error to raise, for what the library raised."""
    chain = _chain(error)
    answers = (getattr(each, "response", None) for each in chain)
    answer = next((each for each in answers if each is not None), None)
    if answer is not None:
        return _verdict(answer, subject)
    reason = redact(f"{type(chain[-1]).__name__}: {chain[-1]}").strip().splitlines()[0][:300]
    is_cut = any(isinstance(each, json.JSONDecodeError) for each in chain)
    if is_cut or not isinstance(error, (ValueError, TypeError, FileNotFoundError)):
        return Again(reason)
    return StorageError(Problem(subject=subject, message=f"the upload failed: {reason}"))


def _chain(error: BaseException) -> Sequence[BaseException]:
    """An error and what it came from."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _verdict(answer: Any, subject: str) -> Exception:
    """What an answer of the hub, or of the storage behind it, means for a push."""
    status = int(answer.status_code)
    told = redact(str(answer.headers.get("X-Error-Message", "")))[:300]
    reason = f"{status} {told}".strip()
    repo = "/".join(subject.split("/")[:2])
    if status in (408, 429) or status >= 500:
        wait = retry_after_seconds(answer.headers) if status == 429 else 0.0
        return Again(f"the hub said {reason}", throttled=status in (429, 503), wait_seconds=wait)
    if status == 412:
        return _changed(repo)
    if status == 401:
        message = "the hub does not know this token"
        return AccessError(Problem(subject=repo, message=message, remedy="run `hf auth login` again"))
    if status == 403:
        return AccessError(
            Problem(subject=repo, message=f"this token may not write to it ({reason})", remedy=_NEEDS_WRITE)
        )
    if status == 404:
        message = "does not exist, or this token may not see it"
        return NotFoundError(Problem(subject=repo, message=message, remedy=_NEEDS_WRITE))
    return StorageError(Problem(subject=subject, message=f"the hub said {reason}"))


def _changed(repo: str) -> ChangedError:
    message = "another commit was made there while this one was prepared"
    return ChangedError(
        Problem(subject=repo, message=message, remedy="run the same command again: nothing is sent twice")
    )
