"""Two streams side by side: nothing is lost, an error of one ends the other, and an end is an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest

from raymerge.execute.beside import side_by_side


class Stream:
    """Gives numbers with a pause before each, until told to stop."""

    def __init__(self, numbers: range, *, pause: float = 0.01, error: Exception | None = None) -> None:
        self.numbers, self.pause, self.error = numbers, pause, error
        self.ended = threading.Event()

    def background(self, stopping: Callable[[], bool]) -> Iterator[int]:
        try:
            for number in self.numbers:
                if stopping():
                    return
                time.sleep(self.pause)
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.ended.set()

    def foreground(self) -> Generator[int, None, None]:
        yield from self.background(lambda: False)


@pytest.mark.parametrize(("first", "second"), [(5, 20), (20, 5), (0, 3), (3, 0), (0, 0)])
def test_everything_of_both_comes_once_in_its_own_order(first: int, second: int) -> None:
    found = list(side_by_side(Stream(range(first)).background, Stream(range(100, 100 + second)).foreground()))
    assert [number for number in found if number < 100] == list(range(first))
    assert [number for number in found if number >= 100] == list(range(100, 100 + second))


def test_they_run_at_the_same_time() -> None:
    began = time.monotonic()
    list(side_by_side(Stream(range(10), pause=0.05).background, Stream(range(10), pause=0.05).foreground()))
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize("failing", ["background", "foreground"])
def test_an_error_of_one_ends_the_other(failing: str) -> None:
    broken, endless = Stream(range(2), error=ValueError("broken")), Stream(range(10**6))
    behind, front = (broken, endless) if failing == "background" else (endless, broken)
    with pytest.raises(ValueError, match="broken"):
        list(side_by_side(behind.background, front.foreground()))
    assert endless.ended.wait(3)


def test_whoever_stops_asking_ends_both() -> None:
    behind, front = Stream(range(10**6)), Stream(range(10**6))
    stream = side_by_side(behind.background, front.foreground())
    next(stream)
    stream.close()
    assert front.ended.is_set()
    assert behind.ended.wait(3)
