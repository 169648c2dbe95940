"""Do other hosts see the same disk? A driver writes a nonce; whoever reads it back shares the folder."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Nonce:
    """A file and the text it holds."""

    path: str
    value: str


@contextmanager
def nonce_in(folder: Path) -> Iterator[Nonce]:
    """A nonce file in an existing, writable `folder`, removed at the end."""
    value = secrets.token_hex(16)
    path = folder.resolve() / f".raymerge-nonce-{value[:8]}"
    path.write_text(value, encoding="ascii")
    try:
        yield Nonce(path=str(path), value=value)
    finally:
        path.unlink(missing_ok=True)
