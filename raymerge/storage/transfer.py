"""One large range as several concurrent requests, each into its own piece of the caller's buffer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeAlias

from raymerge.errors import StorageError
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import StoppedError

# S3 gives one connection about 5 Gb/s and advises ranges of 8 to 16 MB.
PART_BYTES = 16 << 20
READ_THREADS = 32

# Fills the view with the bytes from the offset; gives up when the event is set.
Fetch: TypeAlias = Callable[[memoryview, int, threading.Event], None]

_readers = PerProcess(lambda: ThreadPoolExecutor(READ_THREADS, thread_name_prefix="raymerge-read"))


def split(nbytes: int, part_bytes: int) -> list[tuple[int, int]]:
    """(start, end) of about equal pieces of at most `part_bytes`."""
    pieces = -(-nbytes // part_bytes)
    return [(nbytes * i // pieces, nbytes * (i + 1) // pieces) for i in range(pieces)]


def near_split(nbytes: int, part_bytes: int) -> list[tuple[int, int]]:
    """(start, end) of equal pieces as near to `part_bytes` as they get: from three quarters to one and a half of it."""
    pieces = max(1, (nbytes + part_bytes // 2) // part_bytes)
    return split(nbytes, -(-nbytes // pieces)) if nbytes else []


def read_parts(fetch: Fetch, view: memoryview, offset: int, *, part_bytes: int | None = None) -> None:
    """Fill `view` with the bytes from `offset`. On failure nothing writes into `view` any more when this returns."""
    pieces = near_split(len(view), part_bytes or PART_BYTES)
    stop = threading.Event()
    if len(pieces) <= 1:
        if pieces:
            fetch(view, offset, stop)
        return
    pool = _readers.get()
    futures = [pool.submit(fetch, view[start:end], offset + start, stop) for start, end in pieces]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        raise_first(futures)
    finally:
        stop.set()
        for future in futures:
            future.cancel()
        wait(futures)


def raise_first(futures: Sequence[Future[Any]]) -> None:
    """Raise the first real failure among finished futures; one that was only stopped says nothing."""
    errors = [future.exception() for future in futures if future.done() and not future.cancelled()]
    failures = [error for error in errors if error is not None]
    for error in failures:
        if not isinstance(error, StoppedError):
            raise error
    if failures:
        raise StorageError(*getattr(failures[0], "problems", ()))
