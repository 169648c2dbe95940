"""State that belongs to one process: sockets, clients and threads, which neither a fork nor a pickle may carry."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")

_every: WeakSet[PerProcess[object]] = WeakSet()


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


def _forget_all() -> None:
    for value in list(_every):
        value._forget()  # noqa: SLF001 (same module)


os.register_at_fork(after_in_child=_forget_all)
