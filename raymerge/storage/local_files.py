"""Opening and checking local files, and what an OSError of one means to the user."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator

from raymerge.errors import (
    AccessError,
    ChangedError,
    NotFoundError,
    Problem,
    StorageError,
    TransientStorageError,
)
from raymerge.storage.base import ObjectInfo
from raymerge.storage.traffic import count as count_traffic

_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAKING = {"create", "write to"}  # what these miss is a place, not the file: /proc takes no new ones
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOLCK}


def local_error(error: OSError, url: str, action: str, *, nbytes: int | None = None) -> StorageError:
    """The error a user should see for an OSError, with what was needed and what is free where room is the trouble."""
    number = error.errno or 0
    reason = error.strerror or type(error).__name__
    if number == errno.ENOENT and action not in _MAKING:
        return NotFoundError(Problem(subject=url, message="does not exist"))
    if number in _ACCESS:
        return AccessError(Problem(subject=url, message=f"cannot {action} it: {reason}"))
    if number in _FULL:
        return StorageError(
            Problem(
                subject=url,
                message=f"cannot {action} it: {reason}{_room(url, nbytes)}",
                remedy="free some space or choose another folder; the same command then continues",
            )
        )
    kind = TransientStorageError if number in _TRANSIENT else StorageError
    return kind(Problem(subject=url, message=f"cannot {action} it: {reason}"))


def _room(url: str, nbytes: int | None) -> str:
    path = nearest_existing(url)
    free = shutil.disk_usage(path if os.path.isdir(path) else os.path.dirname(path)).free  # noqa: PTH112, PTH120
    needed = f"{nbytes:,} bytes are needed, " if nbytes is not None else ""
    return f" ({needed}{free:,} are free)"


@contextlib.contextmanager
def translated(url: str, action: str, *, nbytes: int | None = None) -> Iterator[None]:
    """Turn an OSError inside into the project's own."""
    try:
        yield
    except OSError as error:
        raise local_error(error, url, action, nbytes=nbytes) from error


def nearest_existing(path: str) -> str:
    """`path` itself or its deepest ancestor that exists."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:  # noqa: PTH120
        path = os.path.dirname(path)  # noqa: PTH120
    return path


def file_version(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}"


def file_info(url: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(url=url, nbytes=status.st_size, version=file_version(status), modified=status.st_mtime)


def check_version(url: str, status: os.stat_result, version: str) -> None:
    found = file_version(status)
    if version and found != version:
        raise ChangedError(
            Problem(
                subject=url,
                message=f"the file changed since planning (size:mtime is {found}, it was {version})",
                remedy="run again once nothing writes to it",
            )
        )


@contextlib.contextmanager
def open_file(url: str) -> Iterator[int]:
    with translated(url, "read"):
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(url, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
            raise StorageError(Problem(subject=url, message=f"is {kind}, a file was expected"))
        yield descriptor
    finally:
        os.close(descriptor)


def fill(url: str, descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            size = os.fstat(descriptor).st_size
            raise StorageError(
                Problem(
                    subject=url,
                    message=f"ends at byte {size:,}, bytes {offset:,} to {offset + len(view):,} were expected",
                    remedy="the file is cut short: copy or download it again",
                )
            )
        done += count
    count_traffic(read_bytes=done)
