"""Where compiled kernels are kept between runs."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"


def pin_kernel_cache() -> bool:
    """Name one folder per user and version for numba's cache, unless the environment names one. Call before numba.

    Numba's own choice lies beside the source file, which a Ray worker may find at another path in every run, or not be
    allowed to write. And it looks at each file alone: kernels of two versions, with different sizes of scratch, would
    be mixed. False: no folder can be written, so kernels must be compiled without a cache.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _is_usable(Path(named))
    for root in _roots():
        folder = root / f"kernels-{_version()}"
        if _is_usable(folder):
            os.environ[VARIABLE] = str(folder)
            return True
    return False


def _version() -> str:
    """Of what these kernels are compiled from: numba looks at each file alone, but they use each other's constants."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=8).hexdigest()


def _roots() -> tuple[Path, ...]:
    caches = os.environ.get("XDG_CACHE_HOME")
    user = getattr(os, "getuid", lambda: 0)()
    temporary = Path(tempfile.gettempdir()) / f"raymerge-{user}"
    try:
        home = Path(caches) if caches else Path.home() / ".cache"
    except RuntimeError:  # no home folder is known for this user
        return (temporary,)
    return (home / "raymerge", temporary)


def _is_usable(folder: Path) -> bool:
    """Whether it can be written and is this user's own: compiled code is loaded from it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return False
