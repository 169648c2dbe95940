"""Every other location that fsspec opens: gs://, az://, http(s)://, memory:// and more."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from raymerge.errors import AccessError, ChangedError, NotFoundError, Problem, RaymergeError, StorageError
from raymerge.storage.base import CopyRange, ObjectInfo, ObjectWriter, Store
from raymerge.storage.crc32 import crc32 as crc32_of
from raymerge.storage.crc32 import crc32_combine
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import Again, Limiter, attempt
from raymerge.storage.traffic import count
from raymerge.storage.transfer import PART_BYTES, read_parts
from raymerge.storage.urls import base_name, join_url, redact

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "http": "aiohttp",
             "https": "aiohttp", "oss": "ossfs", "oci": "ocifs", "hdfs": "pyarrow", "sftp": "paramiko",
             "ssh": "paramiko", "webdav": "webdav4", "dbfs": "requests", "smb": "smbprotocol"}  # fmt: skip
# What says that an object changed, best first; drivers name it differently.
_VERSION_KEYS = ("etag", "ETag", "generation", "md5Hash", "contentHash", "content_md5", "mtime", "last_modified",
                 "LastModified", "updated", "created")  # fmt: skip
# One look at an object per process and this long tells a change; a look before every range would double the requests.
_LOOK_SECONDS = 10.0

_limiter = PerProcess(lambda: Limiter(16))


class GenericStore(Store):
    """One store per scheme; its driver comes from an installed package and finds its own credentials."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._drivers = PerProcess(lambda: _driver(scheme))
        self._looks = PerProcess(_Looks)

    def __reduce__(self) -> tuple[type[GenericStore], tuple[str]]:
        return (GenericStore, (self._scheme,))

    def buffered_bytes(self, nbytes: int) -> int:
        return min(nbytes, PART_BYTES)

    def info(self, url: str) -> ObjectInfo:
        found = self._call(url, lambda driver, path: driver.info(path))
        if found.get("type") == "directory":
            raise StorageError(Problem(subject=redact(url), message="is a folder, a file was expected"))
        return _object(url, found)

    def list(self, url: str) -> tuple[ObjectInfo, ...]:
        try:
            entries = self._call(url, lambda driver, path: driver.ls(path, detail=True))
        except NotFoundError:
            return ()
        files = [entry for entry in entries if entry.get("type") == "file"]
        with ThreadPoolExecutor(16) as pool:
            infos = list(
                pool.map(lambda entry: self._listed(join_url(url, base_name(str(entry["name"]))), entry), files)
            )
        return tuple(sorted(infos, key=lambda info: info.url))

    def _listed(self, url: str, entry: dict[str, Any]) -> ObjectInfo:
        """Some drivers tell little in a listing (HTTP: the name alone)."""
        return self.info(url) if entry.get("size") is None or not _mark(entry) else _object(url, entry)

    def read(self, url: str, *, max_bytes: int) -> bytes:
        size = self.info(url).nbytes
        if size > max_bytes:
            raise StorageError(
                Problem(subject=redact(url), message=f"holds {size:,} bytes, at most {max_bytes:,} were expected")
            )
        return self._range(url, 0, size, None)

    def read_into(self, url: str, buffer: Buffer, *, offset: int, version: str) -> None:
        if version:
            self._check(url, version, offset + memoryview(buffer).nbytes)

        def fetch(view: memoryview, start: int, stop: threading.Event) -> None:
            view[:] = self._range(url, start, start + len(view), stop)

        with memoryview(buffer).cast("B") as whole:
            read_parts(fetch, whole, offset)

    def create(self, url: str, *, nbytes: int) -> ObjectWriter:
        return SpooledWriter(self, url, nbytes=nbytes)

    def upload(self, path: str, url: str) -> ObjectInfo:
        """Send a whole local file. Never through an open remote file, which an exception inside would commit."""
        self._call(url, lambda driver, target: driver.put_file(path, target))
        return self.info(url)

    def delete(self, url: str) -> None:
        with contextlib.suppress(NotFoundError):
            self._call(url, lambda driver, path: driver.rm_file(path))

    def probe(self, url: str, *, nbytes: int) -> None:  # noqa: ARG002 (an object store has room)
        target = join_url(url, f".raymerge-probe-{secrets.token_hex(4)}")
        self._call(target, lambda driver, path: driver.pipe_file(path, b"probe"))
        self.delete(target)

    def clean(self, url: str, *, names: tuple[str, ...]) -> int:  # noqa: ARG002
        return 0  # whole files are sent; what a killed process spooled, the system's temporary folder forgets

    def _range(self, url: str, start: int, end: int, stop: threading.Event | None) -> bytes:
        if start == end:
            return b""

        def read(driver: Any, path: str) -> bytes:
            data: bytes = driver.cat_file(path, start=start, end=end)
            if len(data) != end - start:
                raise Again(f"asked for {end - start} bytes from {start}, got {len(data)}")
            count(read_bytes=len(data))
            return data

        return self._call(url, read, stop=stop)

    def _check(self, url: str, version: str, end: int) -> None:
        found = self._looks.get().info(url, lambda: self.info(url))
        if found.version != version:
            raise ChangedError(
                Problem(
                    subject=redact(url),
                    message=f"the object changed since planning (it is {found.version}, it was {version})",
                    remedy="run again once nothing writes to it",
                )
            )
        if found.nbytes < end:
            raise StorageError(
                Problem(subject=redact(url), message=f"ends at byte {found.nbytes:,}, {end:,} were expected")
            )

    def _call(self, url: str, operation: Callable[[Any, str], T], *, stop: threading.Event | None = None) -> T:
        driver = self._drivers.get()

        def once() -> T:
            with _translated(url):
                return operation(driver, driver._strip_protocol(url))  # noqa: SLF001 (fsspec's name for it)

        return attempt(once, url=url, limiter=_limiter.get(), stop=stop)


class _Looks:
    """What an object was when last looked at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, ObjectInfo]] = {}

    def info(self, url: str, look: Callable[[], ObjectInfo]) -> ObjectInfo:
        with self._lock:
            at, info = self._seen.get(url, (0.0, None))
        if info is None or time.monotonic() - at > _LOOK_SECONDS:
            info = look()
            with self._lock:
                self._seen[url] = (time.monotonic(), info)
        return info


class SpooledWriter(ObjectWriter):
    """Collects the object in the system's temporary folder (TMPDIR) and sends it whole at `commit`."""

    def __init__(self, store: GenericStore, url: str, *, nbytes: int) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if free < nbytes:
            raise StorageError(
                Problem(
                    subject=tempfile.gettempdir(),
                    message=f"{nbytes:,} bytes are needed to spool {redact(url)}, {free:,} are free",
                    remedy="set TMPDIR to a folder with more room, or a smaller --out-shard-size",
                )
            )
        self._store = store
        self._url = url
        self._nbytes = nbytes
        self._position = 0
        self._crc32 = 0
        self._file = tempfile.NamedTemporaryFile(prefix="raymerge-spool-")  # noqa: SIM115 (closed by abort or commit)

    def write(self, data: Buffer, *, crc32: int | None = None) -> None:
        with memoryview(data).cast("B") as view:
            self._position += len(view)
            if self._position > self._nbytes:
                raise self._wrong_size()
            self._crc32 = crc32_of(view, self._crc32) if crc32 is None else crc32_combine(self._crc32, crc32, len(view))
            with _spooling(self._file.name):
                self._file.write(view)

    def copy(self, source: CopyRange) -> None:
        from raymerge.storage import store_for

        store = store_for(source.url)
        block = memoryview(bytearray(min(PART_BYTES, source.nbytes)))
        for done in range(0, source.nbytes, PART_BYTES):
            view = block[: source.nbytes - done]
            store.read_into(source.url, view, offset=source.offset + done, version=source.version)
            self.write(view)

    def commit(self) -> ObjectInfo:
        if self._position != self._nbytes:
            raise self._wrong_size()
        with _spooling(self._file.name):
            self._file.flush()
        info = self._store.upload(self._file.name, self._url)
        count(written_bytes=self._nbytes)
        self.abort()
        if info.nbytes != self._nbytes:
            raise StorageError(
                Problem(subject=redact(self._url), message=f"holds {info.nbytes:,} bytes, {self._nbytes:,} were sent")
            )
        return ObjectInfo(
            url=self._url, nbytes=info.nbytes, version=info.version, identity=info.identity, crc32=self._crc32
        )

    def abort(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file.close()

    def _wrong_size(self) -> StorageError:
        return StorageError(
            Problem(
                subject=redact(self._url),
                message=f"{self._position:,} bytes were written, {self._nbytes:,} were announced",
            )
        )


def _driver(scheme: str) -> Any:
    import fsspec

    package = _PACKAGES.get(scheme)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise StorageError(
            Problem(
                subject=f"{scheme}://",
                message=f"needs a package that is not installed ({error})",
                remedy=f"pip install {package}" if package else "install fsspec's driver for it",
            )
        ) from error
    except ValueError as error:
        raise StorageError(
            Problem(subject=f"{scheme}://", message="is no kind of location that fsspec knows")
        ) from error


def _object(url: str, found: dict[str, Any]) -> ObjectInfo:
    if found.get("size") is None:
        raise StorageError(Problem(subject=redact(url), message="the server does not say how large it is"))
    size = int(found["size"])
    version = f"{size}:{_mark(found)}"
    return ObjectInfo(url=url, nbytes=size, version=version, identity=version)


def _mark(found: dict[str, Any]) -> str:
    """What changes with the content; drivers give times as numbers here and as dates there."""
    value = next((found[key] for key in _VERSION_KEYS if found.get(key)), "")
    if isinstance(value, datetime):
        value = value.timestamp()
    return f"{value:.6f}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    place = redact(url)
    try:
        yield
    except (RaymergeError, Again):
        raise
    except FileNotFoundError as error:
        raise NotFoundError(Problem(subject=place, message="does not exist")) from error
    except PermissionError as error:
        raise AccessError(Problem(subject=place, message=f"no access ({redact(str(error))})")) from error
    except NotImplementedError as error:
        raise StorageError(Problem(subject=place, message="this kind of location cannot do that")) from error
    except Exception as error:  # every driver has errors of its own; most are of the network
        status = getattr(error, "status", None) or getattr(error, "code", None)
        reason = f"{type(error).__name__}: {redact(str(error))}"
        if status in (401, 403):
            raise AccessError(Problem(subject=place, message=f"no access ({reason})")) from error
        raise Again(reason, throttled=status in (429, 503)) from error


@contextlib.contextmanager
def _spooling(path: str) -> Iterator[None]:
    from raymerge.storage.local_files import translated

    with translated(path, "spool to"):
        yield
