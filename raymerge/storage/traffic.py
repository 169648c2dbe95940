"""Counts of what this process asked of its stores."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Totals since the process started. `requests` counts attempts; `retries` those that followed a failed one."""

    requests: int = 0
    retries: int = 0
    throttled: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    copied_bytes: int = 0


_lock = threading.Lock()
_totals = Traffic()


def traffic() -> Traffic:
    with _lock:
        return _totals


def count(
    *,
    requests: int = 0,
    retries: int = 0,
    throttled: int = 0,
    read_bytes: int = 0,
    written_bytes: int = 0,
    copied_bytes: int = 0,
) -> None:
    global _totals  # noqa: PLW0603 (one total per process is the point)
    with _lock:
        _totals = replace(
            _totals,
            requests=_totals.requests + requests,
            retries=_totals.retries + retries,
            throttled=_totals.throttled + throttled,
            read_bytes=_totals.read_bytes + read_bytes,
            written_bytes=_totals.written_bytes + written_bytes,
            copied_bytes=_totals.copied_bytes + copied_bytes,
        )
