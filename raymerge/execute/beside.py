"""Two streams of results side by side: one is iterated by the caller, the other by a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.5
_STOP_SECONDS = 3.0


def side_by_side(
    background: Callable[[Callable[[], bool]], Iterator[T]], foreground: Generator[T, None, None]
) -> Generator[T, None, None]:
    """Yield what both give, as it comes; the first error of either is raised and ends the other.

    `background` gets a function that says whether it should give up; it is iterated in a thread of its own.
    """
    stopping = threading.Event()
    inbox: _Inbox[T] = _Inbox()
    thread = threading.Thread(
        target=lambda: inbox.fill(lambda: background(stopping.is_set)), name="raymerge-beside", daemon=True
    )
    thread.start()
    try:
        with contextlib.closing(foreground):
            for item in foreground:
                yield item
                yield from inbox.take(wait=False)
        yield from inbox.take(wait=True)
    finally:
        stopping.set()
        thread.join(_STOP_SECONDS)


class _Ended:
    """The last thing in an inbox: the stream is over, or broke off."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class _Inbox(Generic[T]):
    """What the thread has found and the iterating thread has not yet taken."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()
        self._is_over = False

    def fill(self, stream: Callable[[], Iterator[T]]) -> None:
        try:
            for item in stream():
                self._items.put(item)
            self._items.put(_Ended())
        except BaseException as error:  # noqa: BLE001 - raised by the iterating thread
            self._items.put(_Ended(error))

    def take(self, *, wait: bool) -> Iterator[T]:
        """What there is; with `wait` all that will come."""
        while not self._is_over:
            try:
                # Waiting in steps lets an interrupt in that reaches Python without a signal, as notebooks send it.
                item = self._items.get(timeout=_POLL_SECONDS if wait else 0.0)
            except queue.Empty:
                if wait:
                    continue
                return
            if not isinstance(item, _Ended):
                yield item
                continue
            self._is_over = True
            if item.error is not None:
                raise item.error
