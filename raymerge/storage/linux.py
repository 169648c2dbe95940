"""Two system calls that the standard library lacks; where they are missing nothing happens, only more slowly."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import lru_cache
from typing import Any

_SYNC_FILE_RANGE_WRITE = 2
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


@lru_cache(maxsize=1)
def _library() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    for name, arguments in (
        ("fallocate", [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
        ("sync_file_range", [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]),
    ):
        if not hasattr(library, name):
            return None
        getattr(library, name).argtypes = arguments
    return library


def allocate(descriptor: int, nbytes: int) -> bool:
    """Reserve `nbytes` on the disk, or say False where the file system cannot. Raises OSError when there is no room.

    `os.posix_fallocate` would write a byte into every block where the file system has no such call.
    """
    library = _library()
    if library is None or nbytes <= 0:
        return False
    while library.fallocate(descriptor, 0, 0, nbytes) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Hand dirty pages to the disk now without waiting, so that a later fsync finds little left to do."""
    library = _library()
    if library is not None:
        library.sync_file_range(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)  # a hint: fsync reports errors
