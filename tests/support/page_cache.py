"""Files in the page cache and out of it."""

from __future__ import annotations

import os
from pathlib import Path


def forget(path: Path, offset: int = 0, nbytes: int = 0) -> None:
    """Drop a file that is written out from the page cache, or a range of it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)


def need_lending(path: Path) -> None:
    """Skip the test where the file system is none that lends, or cannot say what it holds in memory."""
    import pytest  # here: the processes that measure memory import this too

    from raymerge.storage import local_maps

    kind = local_maps._file_system(path.stat().st_dev)
    if kind not in local_maps._NEAR_FILE_SYSTEMS:
        pytest.skip(f"{path} lies on {kind or 'an unknown file system'}, which lends nothing")
    with path.open("rb") as file:
        file.read(1)
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except (AttributeError, OSError) as error:
            pytest.skip(f"{kind} does not say what it holds in memory: {error}")
