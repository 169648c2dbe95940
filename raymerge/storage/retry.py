"""Try again what may succeed the next time, politely: bounded, with jitter, and with fewer requests at once."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from raymerge.errors import Problem, StorageError, TransientStorageError
from raymerge.storage.traffic import count
from raymerge.storage.urls import redact

T = TypeVar("T")


class Again(Exception):  # noqa: N818 (not an error: a verdict on one attempt)
    """An attempt failed in a way that another may not. `wait_seconds` is what the server asked for."""

    def __init__(self, reason: str, *, throttled: bool = False, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.throttled = throttled
        self.wait_seconds = wait_seconds


class StoppedError(StorageError):
    """Another part of the same request failed, so this one was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a request is tried before it fails; a task that then fails is itself tried again elsewhere."""

    tries: int = 8
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 20.0
    total_seconds: float = 300.0

    def wait_seconds(self, failed: int) -> float:
        """Exponential in the number of failed tries; the jitter keeps many workers from returning together."""
        longest = min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** (failed - 1))
        return longest * random.uniform(0.5, 1.0)


PATIENCE = Patience()


class Limiter:
    """How many requests run at once: halved when the store throttles, raised by one per round that succeeds.

    One that has a `start` below `most` doubles per round until it is first cut. A request that takes longer than
    `slow_seconds` counts as throttled, and half as long is long enough to ask for no more at once.
    """

    def __init__(self, most: int, *, start: int | None = None, slow_seconds: float = math.inf) -> None:
        self.most = most
        self.limit = float(start or most)
        self.slow_seconds = slow_seconds
        self._is_probing = start is not None
        self._running = 0
        self._condition = threading.Condition()
        self._last_cut = 0.0

    def __enter__(self) -> None:
        with self._condition:
            while self._running >= max(1, int(self.limit)):
                self._condition.wait()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._running -= 1
            self._condition.notify()

    def succeeded(self, seconds: float = 0.0) -> None:
        """Note a request that succeeded after `seconds`."""
        if seconds > self.slow_seconds:
            self.throttled(seconds)
            return
        with self._condition:
            if self.limit < self.most and seconds <= self.slow_seconds / 2:
                step = 1.0 if self._is_probing else 1.0 / self.limit
                self.limit = min(float(self.most), self.limit + step)
                self._condition.notify()

    def throttled(self, seconds: float = 0.0) -> None:
        """Note a throttled request that began `seconds` ago.

        Requests that were under way together are throttled together: that is one signal, not one for each. One that
        began after the last cut says that it was not enough.
        """
        with self._condition:
            now = time.monotonic()
            if now - seconds > self._last_cut:
                self._last_cut = now
                self._is_probing = False
                self.limit = max(1.0, self.limit / 2)


def attempt(
    operation: Callable[[], T],
    *,
    url: str,
    limiter: Limiter,
    stop: threading.Event | None = None,
    patience: Patience | None = None,
) -> T:
    """Run `operation` until it does not raise `Again`; raise TransientStorageError when patience ends."""
    patience = patience or PATIENCE
    started = time.monotonic()
    failed = 0
    while True:
        if stop is not None and stop.is_set():
            raise StoppedError(Problem(subject=redact(url), message="given up, since another part of it failed"))
        count(requests=1)
        try:
            with limiter:
                began = time.monotonic()
                result = operation()
        except Again as fault:
            failed += 1
            seconds = time.monotonic() - began
            if fault.throttled or seconds > limiter.slow_seconds:
                limiter.throttled(seconds)
            _wait_or_raise(fault, failed, url=url, started=started, stop=stop, patience=patience)
        else:
            limiter.succeeded(time.monotonic() - began)
            return result


def _wait_or_raise(
    fault: Again,
    failed: int,
    *,
    url: str,
    started: float,
    stop: threading.Event | None,
    patience: Patience,
) -> None:
    wait = max(fault.wait_seconds, patience.wait_seconds(failed))
    elapsed = time.monotonic() - started
    if failed >= patience.tries or elapsed + wait > patience.total_seconds:
        raise TransientStorageError(
            Problem(
                subject=redact(url),
                message=f"failed {failed} times in {elapsed:.0f} s, at last with: {redact(str(fault))}",
                remedy="run the same command again once the store answers",
            )
        ) from fault
    count(retries=1, throttled=int(fault.throttled))
    (stop or threading.Event()).wait(wait)
