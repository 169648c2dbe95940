"""botocore clients for this process, and what their errors mean."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from raymerge.errors import AccessError, ChangedError, NotFoundError, Problem, StorageError, TransientStorageError
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import Again, Limiter, attempt
from raymerge.storage.urls import redact

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 30  # of silence, not of the whole answer
COPIES = 256  # the store does the work, so hundreds may be under way
CONNECTIONS = COPIES + 64
# A copy is silent until it is done: one that takes long says that the store has enough of them.
SLOW_COPY_SECONDS = 10.0

_NEW_SECONDS = 10.0

_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "TooManyRequestsException",
              "RequestLimitExceeded", "RequestThrottled", "BandwidthLimitExceeded", "ServiceUnavailable"}  # fmt: skip
_AGAIN = {"InternalError", "RequestTimeout", "BadDigest", "IncompleteBody", "OperationAborted", "InternalServerError",
          "ConditionalRequestConflict", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}  # fmt: skip
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken"}
_NO_REASON = "400"  # the answer to a HEAD has no body that says why
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "NoAuthTokenError",
                   "CredentialRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "LoginRefreshRequired",
                   "LoginTokenLoadError")  # fmt: skip
_TRANSPORT = ("HTTPClientError", "ConnectionError", "IncompleteReadError", "ChecksumError", "FlexibleChecksumError",
              "MetadataRetrievalError", "ResponseStreamingError")  # fmt: skip

read_limiter = PerProcess(lambda: Limiter(32))
write_limiter = PerProcess(lambda: Limiter(32))
copy_limiter = PerProcess(lambda: Limiter(COPIES, start=8, slow_seconds=SLOW_COPY_SECONDS))


class UploadGoneError(TransientStorageError):
    """A multipart upload is complete or aborted already."""


class _Clients:
    """The client in use. It is made anew when the environment that configured it changes or its credentials expire."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: Any = None
        self._environment = ""
        self._keys: Any = None
        self._made_at = 0.0

    def current(self) -> Any:
        environment = _environment()
        with self._lock:
            if self._client is None or environment != self._environment:
                self._make(environment)
            return self._client

    def renew(self, used: Any) -> bool:
        """Load credentials again, unless another thread has. Says whether another try makes sense.

        It does with other keys, and once with the same: a request that was held up for long has expired by itself.
        """
        with self._lock:
            if used is not self._client:
                return True
            keys, is_new = self._keys, time.monotonic() - self._made_at < _NEW_SECONDS
            self._make(_environment())
            return not is_new or self._keys != keys

    def _make(self, environment: str) -> None:
        self._client, self._keys = _new_client()
        self._environment = environment
        self._made_at = time.monotonic()


_clients = PerProcess(_Clients)


def current_client() -> Any:
    return _clients.get().current()


def _environment() -> str:
    """What AWS variables say, hashed: a notebook may set them after a first failed try."""
    text = "\0".join(f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith("AWS_"))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _new_client() -> tuple[Any, Any]:
    """A client, and the keys that it signs with at first; None where it signs nothing."""
    import botocore.session
    from botocore import UNSIGNED

    with _errors_of("S3", None):
        session = botocore.session.Session()
        # Many workers that start at once on one node are throttled by its metadata service, which one try would take
        # for a node without a role.
        session.set_config_variable("metadata_service_num_attempts", 3)
        session.register_component("data_loader", _service_descriptions(session.get_config_variable("data_path")))
        credentials = session.get_credentials()  # public buckets need none
        keys = credentials.get_frozen_credentials() if credentials is not None else None
        options: dict[str, Any] = {"signature_version": UNSIGNED} if credentials is None else {}
        style = session.get_scoped_config().get("s3", {}).get("addressing_style")
        client = session.create_client("s3", config=_config(style, options))
        if style is None and "amazonaws.com" not in client.meta.endpoint_url:
            # bucket.minio.internal rarely resolves: other servers are asked by path unless the profile says otherwise
            client = session.create_client("s3", config=_config("path", options))
        return client, keys


@lru_cache
def _service_descriptions(search_path: str | None) -> Any:
    """What botocore makes clients from, read once per process: parsing it takes most of the time of a new client."""
    from botocore.loaders import create_loader

    return create_loader(search_path)


def _config(style: str | None, options: dict[str, Any]) -> Any:
    from botocore.config import Config

    common: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": READ_TIMEOUT_SECONDS,
        "max_pool_connections": CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},  # retry.py does it, with jitter and in view
        # Every body carries a CRC32 header, which the signature covers: hashing it again would cost 0.5 s per GB.
        "s3": {"payload_signing_enabled": False, **({"addressing_style": style} if style else {})},
        "user_agent_extra": "raymerge",
        **options,
    }
    try:
        return Config(
            request_checksum_calculation="when_required", response_checksum_validation="when_required", **common
        )
    except TypeError:  # botocore before 1.36 has no such options and adds no checksums by itself
        return Config(**common)


def call(
    operation: Callable[[Any], T],
    *,
    url: str,
    limiter: Limiter,
    version: str = "",
    stop: threading.Event | None = None,
) -> T:
    """`operation(client)` with retries; botocore's errors become the project's."""

    def once() -> T:
        client = current_client()
        with _errors_of(url, client, version):
            return operation(client)

    return attempt(once, url=url, limiter=limiter, stop=stop)


@contextlib.contextmanager
def _errors_of(url: str, client: Any, version: str = "") -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _service_error(error, url, client, version) from error
    except BotoCoreError as error:
        raise _client_error(error, url) from error
    except (OSError, HTTPError) as error:
        raise Again(f"{type(error).__name__}: {redact(str(error))}") from error


def _service_error(error: Any, url: str, client: Any, version: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = redact(str(error.response.get("Error", {}).get("Message", "")))
    reason = f"{status} {code}: {text}" if code != str(status) else f"{status} {text}"
    if (code in _EXPIRED or code == _NO_REASON) and _clients.get().renew(client):
        return Again(reason)
    if code in _EXPIRED:
        return AccessError(
            Problem(subject=redact(url), message=f"the credentials have expired ({code})", remedy="renew them")
        )
    if code in _THROTTLED or status in (429, 503):
        return Again(reason, throttled=True)
    if code in _AGAIN or (status >= 500 and status != 501) or status == 408:
        return Again(reason)
    return _final_error(status, code, reason, url, version)


def _final_error(status: int, code: str, reason: str, url: str, version: str) -> StorageError:
    place = redact(url)
    if status == 404:
        if code == "NoSuchUpload":
            return UploadGoneError(
                Problem(subject=place, message="the unfinished upload was aborted by another process")
            )
        what = "the bucket does not exist" if code == "NoSuchBucket" else "does not exist"
        return NotFoundError(Problem(subject=place, message=what))
    if status == 412:
        return ChangedError(
            Problem(
                subject=place,
                message=f"the object changed since planning (it was {version})",
                remedy="run again once nothing writes to it",
            )
        )
    if status in (401, 403):
        return AccessError(
            Problem(
                subject=place,
                message=f"no access ({reason})",
                remedy="check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, the node's role) and the bucket policy",
            )
        )
    return StorageError(Problem(subject=place, message=f"the store answered {reason}"))


def _client_error(error: Exception, url: str) -> Exception:
    names = {kind.__name__ for kind in type(error).__mro__}
    text = f"{type(error).__name__}: {redact(str(error))}"
    if names.intersection(_NO_CREDENTIALS):
        return AccessError(
            Problem(
                subject=redact(url),
                message=f"no usable credentials ({text})",
                remedy="set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role",
            )
        )
    if names.intersection(_TRANSPORT):
        return Again(text)
    return StorageError(Problem(subject=redact(url), message=text))


@lru_cache(maxsize=4096)
def parse_s3_url(url: str) -> tuple[str, str]:
    """(bucket, key); the key of a bucket's root is ""."""
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket:
        raise StorageError(Problem(subject=redact(url), message="names no bucket", remedy="write s3://BUCKET/PATH"))
    return bucket, key
