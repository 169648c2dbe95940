"""Writes a local file under a temporary name in its own folder and renames it once it is on the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from raymerge.errors import Problem, StorageError, TransientStorageError
from raymerge.storage.base import CopyRange, ObjectInfo, ObjectWriter
from raymerge.storage.crc32 import crc32, crc32_combine
from raymerge.storage.direct_io import ALIGNMENT, BUFFER_BYTES, BUFFER_COUNT, DirectAppender
from raymerge.storage.linux import allocate, start_writeback
from raymerge.storage.local_files import check_version, file_info, open_file, translated
from raymerge.storage.traffic import count as count_traffic
from raymerge.storage.urls import is_local

if TYPE_CHECKING:
    from typing_extensions import Buffer

COPY_BLOCK_BYTES = 4 << 20  # read back for the checksum while it still lies in the cache
WRITEBACK_BYTES = 16 << 20
_RESERVE_FROM_BYTES = 1 << 20  # smaller files fit whenever anything fits
_DIRECT_FROM_BYTES = 32 << 20
_STALE_SECONDS = 24 * 3600
_NO_RANGE_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)


def buffered_bytes(nbytes: int) -> int:
    """The most memory a writer of a file of `nbytes` holds."""
    return BUFFER_BYTES * BUFFER_COUNT if nbytes >= _DIRECT_FROM_BYTES else min(nbytes, COPY_BLOCK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialOwner:
    """What the name of a temporary file says: the final name and the process that writes it."""

    name: str
    host: str
    pid: int


def partial_name(name: str) -> str:
    return f".{name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.partial"


def parse_partial_name(name: str) -> PartialOwner | None:
    match = re.fullmatch(r"\.(.+)\.([^.]+)\.(\d+)\.[0-9a-f]{8}\.partial", name, re.DOTALL)
    return PartialOwner(name=match[1], host=match[2], pid=int(match[3])) if match else None


def owner_is_gone(owner: PartialOwner, status: os.stat_result) -> bool:
    """A guess for file systems without locks: ask this host's process table, or wait a day for other hosts."""
    if owner.host != _host():
        return time.time() - status.st_mtime > _STALE_SECONDS
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "host"


class LocalWriter(ObjectWriter):
    """See ObjectWriter. Holds a lock on the temporary file while it lives, so that others see whether it died."""

    def __init__(self, url: str, *, nbytes: int) -> None:
        self._url = url
        self._nbytes = nbytes
        self._folder, name = os.path.split(url)
        self._partial, self._descriptor = self._open_partial(name)
        self._position = 0
        self._flushed = 0
        self._crc32 = 0
        self._range_copy = True
        self._direct: DirectAppender | None = None
        if nbytes >= _RESERVE_FROM_BYTES:
            try:
                allocate(self._descriptor, nbytes)
            except OSError:
                self.abort()
                raise
        self._direct = _direct_appender(self._descriptor, nbytes)

    def write(self, data: Buffer, *, crc32: int | None = None) -> None:
        with memoryview(data).cast("B") as view, self._translated():
            self._check_room(len(view))
            self._append(view, checksum=crc32)

    @property
    def early_block(self) -> int:
        return ALIGNMENT if self._direct is not None else 0

    def write_early(self, data: Buffer, position: int) -> Future[None]:
        assert self._direct is not None
        view = memoryview(data).cast("B")
        self._check_end(position + len(view))
        return self._direct.submit(partial(self._write_early, view, position))

    def _write_early(self, view: memoryview, position: int) -> None:
        assert self._direct is not None
        with self._translated():
            self._direct.write_at(view, position)
        count_traffic(written_bytes=len(view))

    def pass_over(self, nbytes: int, *, crc32: int) -> None:
        assert self._direct is not None
        self._check_room(nbytes)
        with self._translated():
            self._direct.pass_over(nbytes)
        self._crc32 = crc32_combine(self._crc32, crc32, nbytes)
        self._advance(nbytes)

    def copy(self, source: CopyRange) -> None:
        if not is_local(source.url):
            self._copy_through(source)
            return
        self._check_room(source.nbytes)
        with open_file(source.url) as descriptor:
            check_version(source.url, os.fstat(descriptor), source.version)
            self._copy_local(source, descriptor)
            check_version(source.url, os.fstat(descriptor), source.version)

    def commit(self) -> ObjectInfo:
        if self._position != self._nbytes:
            raise StorageError(
                Problem(
                    subject=self._url, message=f"{self._position:,} bytes were written, {self._nbytes:,} were announced"
                )
            )
        with self._translated():
            if self._direct is not None:
                self._direct.finish()
            os.fsync(self._descriptor)
            status = os.fstat(self._descriptor)
            self._rename()
            os.close(self._descriptor)
            self._descriptor = -1
            _sync_folder(self._folder)
        return replace(file_info(self._url, status), crc32=self._crc32)

    def abort(self) -> None:
        if self._descriptor < 0:
            return
        if self._direct is not None:
            self._direct.close()
        try:
            with self._translated(), contextlib.suppress(FileNotFoundError):
                os.unlink(self._partial)  # noqa: PTH108
        finally:
            os.close(self._descriptor)  # after the unlink: the lock says that somebody lives
            self._descriptor = -1

    def _open_partial(self, name: str) -> tuple[str, int]:
        while True:
            path = os.path.join(self._folder, partial_name(name))  # noqa: PTH118
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with contextlib.suppress(OSError):  # file systems without locks: the name tells the owner
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return path, descriptor
            os.close(descriptor)  # a clean-up found it before it was locked

    def _rename(self) -> None:
        try:
            os.replace(self._partial, self._url)  # noqa: PTH105
        except FileNotFoundError as error:
            raise TransientStorageError(
                Problem(subject=self._url, message="another process removed the temporary file before it was complete")
            ) from error

    def _check_room(self, nbytes: int) -> None:
        self._check_end(self._position + nbytes)

    def _check_end(self, end: int) -> None:
        if end > self._nbytes:
            raise StorageError(
                Problem(subject=self._url, message=f"{end:,} bytes were written, {self._nbytes:,} were announced")
            )

    def _append(self, view: memoryview, *, checksum: int | None = None) -> None:
        if self._direct is not None:
            self._direct.append(view)
        else:
            done = 0
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], self._position + done)
        if checksum is None:
            self._crc32 = crc32(view, self._crc32)
        else:
            self._crc32 = crc32_combine(self._crc32, checksum, len(view))
        self._advance(len(view))
        count_traffic(written_bytes=len(view))

    def _advance(self, nbytes: int) -> None:
        self._position += nbytes
        if self._direct is None and self._position - self._flushed >= WRITEBACK_BYTES:
            start_writeback(self._descriptor, self._flushed, self._position - self._flushed)
            self._flushed = self._position

    def _copy_local(self, source: CopyRange, descriptor: int) -> None:
        direct = self._direct
        block = memoryview(bytearray(0 if direct is not None else min(COPY_BLOCK_BYTES, source.nbytes)))
        done = 0
        while done < source.nbytes:
            room = direct.room()[:COPY_BLOCK_BYTES] if direct is not None else block
            view = room[: min(len(room), source.nbytes - done)]
            with translated(source.url, "read"):
                count = os.preadv(descriptor, [view], source.offset + done)
            if count == 0:
                raise StorageError(
                    Problem(subject=source.url, message=f"ends {source.nbytes - done:,} bytes before the range to copy")
                )
            with self._translated():
                if direct is not None:
                    self._take_placed(view[:count], direct)
                else:
                    self._place(view[:count], descriptor, source.offset + done)
            done += count

    def _take_placed(self, view: memoryview, direct: DirectAppender) -> None:
        """Count bytes that were read straight into the room of the direct writes."""
        self._crc32 = crc32(view, self._crc32)
        direct.advance(len(view))
        self._advance(len(view))
        count_traffic(copied_bytes=len(view))

    def _place(self, view: memoryview, descriptor: int, offset: int) -> None:
        """Append bytes that were just read from `offset` of `descriptor`; the kernel may share blocks instead."""
        done = 0
        while self._range_copy and done < len(view):
            try:
                count = os.copy_file_range(
                    descriptor, self._descriptor, len(view) - done, offset + done, self._position + done
                )
            except OSError as error:
                if error.errno not in _NO_RANGE_COPY:
                    raise
                self._range_copy = False
                break
            if count == 0:  # some file systems answer so where they cannot
                self._range_copy = False
            done += count
        self._crc32 = crc32(view[:done], self._crc32)
        self._advance(done)
        count_traffic(copied_bytes=done)
        if done < len(view):
            self._append(view[done:])

    def _copy_through(self, source: CopyRange) -> None:
        from raymerge.storage import store_for

        store = store_for(source.url)
        block = memoryview(bytearray(min(COPY_BLOCK_BYTES * 4, source.nbytes)))
        for done in range(0, source.nbytes, len(block) or 1):
            view = block[: source.nbytes - done]
            store.read_into(source.url, view, offset=source.offset + done, version=source.version)
            self.write(view)

    def _translated(self) -> contextlib.AbstractContextManager[None]:
        return translated(self._url, "write", nbytes=self._nbytes)


def _direct_appender(descriptor: int, nbytes: int) -> DirectAppender | None:
    """Direct writes for large files, where the file system takes them (tmpfs and some network mounts do not)."""
    if nbytes < _DIRECT_FROM_BYTES:
        return None
    try:
        return DirectAppender(descriptor)
    except OSError:
        return None


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)
