"""Local folders and everything mounted as one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raymerge.errors import Problem, StorageError
from raymerge.storage.base import Lent, ObjectInfo, ObjectWriter, Store
from raymerge.storage.local_files import (
    check_version,
    file_info,
    fill,
    local_error,
    nearest_existing,
    open_file,
    translated,
)
from raymerge.storage.local_maps import lend
from raymerge.storage.local_writer import LocalWriter, buffered_bytes, owner_is_gone, parse_partial_name, partial_name
from raymerge.storage.urls import base_name, is_local

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Workers outlive a killed driver by about 2 s; a lock held longer belongs to somebody who is alive.
DYING_OWNER_SECONDS = 4.0
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class LocalStore(Store):
    """Reads by preadv into the caller's buffer; lends what the page cache holds."""

    def __reduce__(self) -> tuple[type[LocalStore], tuple[()]]:
        return (LocalStore, ())

    def buffered_bytes(self, nbytes: int) -> int:
        return buffered_bytes(nbytes)

    def copies_from(self, url: str) -> bool:
        return is_local(url)

    def info(self, url: str) -> ObjectInfo:
        with open_file(url) as descriptor:
            return file_info(url, os.fstat(descriptor))

    def list(self, url: str) -> tuple[ObjectInfo, ...]:
        with translated(url, "list"), os.scandir(url) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        return tuple(_list_files(url, found))

    def read(self, url: str, *, max_bytes: int) -> bytes:
        with open_file(url) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > max_bytes:
                raise StorageError(
                    Problem(subject=url, message=f"holds {size:,} bytes, at most {max_bytes:,} were expected")
                )
            buffer = bytearray(size)
            with translated(url, "read"):
                fill(url, descriptor, memoryview(buffer), 0)
            return bytes(buffer)

    def read_into(self, url: str, buffer: Buffer, *, offset: int, version: str) -> None:
        # No cache of descriptors: opening costs about 5 us, and every read sees a changed file.
        with open_file(url) as descriptor, translated(url, "read"):
            check_version(url, os.fstat(descriptor), version)
            with memoryview(buffer).cast("B") as view:
                fill(url, descriptor, view, offset)
            check_version(url, os.fstat(descriptor), version)

    def lend(self, url: str, *, offset: int, nbytes: int, version: str) -> Lent | None:
        return lend(url, offset=offset, nbytes=nbytes, version=version)

    def create(self, url: str, *, nbytes: int) -> ObjectWriter:
        with translated(url, "create", nbytes=nbytes):
            os.makedirs(os.path.dirname(url), exist_ok=True)  # noqa: PTH103, PTH120
            return LocalWriter(url, nbytes=nbytes)

    def put_new(self, url: str, data: bytes) -> bool:
        with translated(url, "create"):
            folder, name = os.path.split(url)
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            partial = os.path.join(folder, partial_name(name))  # noqa: PTH118
            try:
                with open(partial, "xb") as file:  # noqa: PTH123
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(partial, url)  # unlike a rename this replaces nothing
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return super().put_new(url, data)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial)  # noqa: PTH108
        return True

    def delete(self, url: str) -> None:
        with translated(url, "delete"), contextlib.suppress(FileNotFoundError):
            os.unlink(url)  # noqa: PTH108

    def probe(self, url: str, *, nbytes: int) -> None:
        folder = nearest_existing(url)
        with translated(url, "write to"), tempfile.TemporaryFile(dir=folder):
            pass  # permission bits say nothing to root, nor on a network file system; a file does
        free = shutil.disk_usage(folder).free
        if free < nbytes:
            raise StorageError(
                Problem(
                    subject=url,
                    message=f"{nbytes:,} bytes are needed, {free:,} are free",
                    remedy="free some space or choose another folder",
                )
            )

    def clean(self, url: str, *, names: tuple[str, ...]) -> int:
        try:
            entries = os.listdir(url)  # noqa: PTH208
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise local_error(error, url, "list") from error
        wanted = frozenset(names)
        left = [os.path.join(url, name) for name in entries if _final_name(name) in wanted]  # noqa: PTH118
        deadline = time.monotonic() + DYING_OWNER_SECONDS
        removed = 0
        while left:
            still_locked = [path for path in left if not _remove_if_dead(path)]
            removed += len(left) - len(still_locked)
            left = still_locked
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return removed

    def unfinished(self, url: str) -> tuple[str, ...]:
        with translated(url, "list"):
            names = sorted(os.listdir(url))  # noqa: PTH208
        return tuple(final for name in names if (final := _final_name(name)) is not None)


def _list_files(folder: str, entries: list[os.DirEntry[str]]) -> Iterator[ObjectInfo]:
    for entry in entries:
        if parse_partial_name(entry.name) is not None:
            continue
        try:
            status = entry.stat()  # follows links: the hub's cache is made of them
        except FileNotFoundError:  # removed meanwhile, or a link to nothing
            continue
        except OSError as error:
            raise local_error(error, os.path.join(folder, entry.name), "read") from error  # noqa: PTH118
        if stat.S_ISREG(status.st_mode):
            yield file_info(os.path.join(folder, entry.name), status)  # noqa: PTH118


def _final_name(partial: str) -> str | None:
    owner = parse_partial_name(partial)
    return owner.name if owner else None


def _remove_if_dead(path: str) -> bool:
    """True when the temporary file is gone."""
    owner = parse_partial_name(base_name(path))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise local_error(error, path, "clean up") from error
    try:
        with translated(path, "clean up"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # no locks on this file system: the name says whose it is
                if owner is not None and not owner_is_gone(owner, os.fstat(descriptor)):
                    return False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
        return True
    finally:
        os.close(descriptor)
