"""Seconds that the threads of one task spend reading, computing and writing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

Phase = Literal["read", "compute", "write"]


class Stopwatch:
    """Sums over threads, so that phases that overlap add up to more than the time that passes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Phase, float] = {"read": 0.0, "compute": 0.0, "write": 0.0}

    @contextmanager
    def timing(self, phase: Phase, *, within: Phase | None = None) -> Iterator[None]:
        """Count what is done as `phase`, and not as the phase that this thread is in already."""
        started = time.monotonic()
        try:
            yield
        finally:
            passed = time.monotonic() - started
            with self._lock:
                self._seconds[phase] += passed
                if within is not None:
                    self._seconds[within] -= passed

    def seconds(self) -> tuple[tuple[str, float], ...]:
        with self._lock:
            return tuple(self._seconds.items())


class TimedReaders(ThreadPoolExecutor):
    """Threads whose work is reading."""

    def __init__(self, count: int, watch: Stopwatch) -> None:
        super().__init__(count, thread_name_prefix="raymerge-read")
        self._watch = watch

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        def read() -> Any:
            with self._watch.timing("read"):
                return function(*arguments, **options)

        return super().submit(read)
