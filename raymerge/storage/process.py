"""State that belongs to one process: sockets, clients and threads, which neither a fork nor a pickle may carry.

And the lock that keeps forks away from what cannot stand one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")

_every: WeakSet[PerProcess[object]] = WeakSet()
_of_parents: list[object] = []  # never closed here: that may wait for a lock of a thread that is only there


class PerProcess(Generic[T]):
    """A value made by `make` on first use in each process. Safe to use from many threads."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._forget()
        _every.add(self)  # type: ignore[arg-type]

    def get(self) -> T:
        with self._lock:
            if not self._values:
                self._values.append(self._make())
            return self._values[0]

    def _forget(self) -> None:
        self._lock = threading.Lock()  # the old one may be held by a thread that the fork did not bring along
        self._values: list[T] = []


class SharedLock:
    """Held by many at once or by one alone, who goes before those that come later. No thread may hold it twice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharers = 0
        self._alone = 0  # those that hold it alone or wait to

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._sharers += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharers -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._alone += 1
            self._changed.wait_for(lambda: not self._sharers)
        try:
            yield
        finally:
            with self._changed:
                self._alone -= 1
                self._changed.notify_all()


# Shared by requests through huggingface_hub, taken alone by whoever forks this process and runs Python in the child, as
# Ray does. There huggingface_hub closes its client before anything else, and waits for ever for a lock that a request
# of another thread held at the fork; the parent waits for the child.
forks = PerProcess(SharedLock)


def _forget_all() -> None:
    for value in list(_every):
        _of_parents.append(value._values)  # noqa: SLF001 (same module)
        value._forget()  # noqa: SLF001 (same module)


os.register_at_fork(after_in_child=_forget_all)
