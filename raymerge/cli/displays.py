"""Event listeners: each takes a run's events and shows them its own way."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Protocol

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from raymerge.cli.screens.progress import Progress, advance, live_view, progress_line, retry_line
from raymerge.cli.screens.text import plural
from raymerge.cli.terminal import Terminal
from raymerge.events import Event, Message, RunFinished, RunStarted, TaskFinished, TaskRetried, TaskSurveyed

SECONDS_BETWEEN_LINES = 10.0
_PROGRESS = (TaskFinished, TaskSurveyed, TaskRetried)


class Display(Protocol):
    """Shows events as they come, from any thread. `has_started` is true once shards are being written."""

    has_started: bool

    def __call__(self, event: Event) -> None: ...


def event_name(event: Event) -> str:
    """Snake case: "task_finished" for TaskFinished."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


class JsonLines:
    """One JSON line for each event."""

    def __init__(self, terminal: Terminal) -> None:
        self.has_started = False
        self._terminal = terminal
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.has_started = self.has_started or isinstance(event, RunStarted)
            self._terminal.json_line({"event": event_name(event), "time": round(time.time(), 3), **asdict(event)})


class Quiet:
    """Warnings only."""

    def __init__(self, terminal: Terminal) -> None:
        self.has_started = False
        self._terminal = terminal

    def __call__(self, event: Event) -> None:
        self.has_started = self.has_started or isinstance(event, RunStarted)
        if isinstance(event, Message) and event.level == "warning":
            self._terminal.note(event.text, level="warning")


class Lines:
    """Plain lines with the time of day: progress and retries at most every ten seconds, warnings at once."""

    def __init__(self, terminal: Terminal) -> None:
        self.has_started = False
        self._terminal = terminal
        self._progress = Progress(started_at=time.monotonic())
        self._last_line_at = float("-inf")
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            now = time.monotonic()
            self._progress = advance(self._progress, event, now)
            if isinstance(event, RunStarted):
                self.has_started = True
                self._print("start", start_text(event))
                self._last_line_at = now
            elif isinstance(event, Message):
                self._print("warning" if event.level == "warning" else "note", event.text)
            elif isinstance(event, _PROGRESS) and now - self._last_line_at >= SECONDS_BETWEEN_LINES:
                self._last_line_at = now
                if isinstance(event, TaskRetried):
                    self._print("retry", retry_line(event))
                else:
                    self._print("", progress_line(self._progress, now))

    def _print(self, label: str, text: str) -> None:
        line = f"{label:<11}{text}" if label else text
        self._terminal.err.print(Text(f"{time.strftime('%H:%M:%S')}  {line}"), soft_wrap=True)


class LiveBar:
    """A bar that is drawn in place, with messages and retries above it."""

    def __init__(self, terminal: Terminal, name: str) -> None:
        self.has_started = False
        self._terminal = terminal
        self._name = name
        self._progress = Progress(started_at=time.monotonic())
        self._lock = threading.Lock()
        # Redrawn as time passes, between events too: the time left and the slowest task change by themselves.
        self._live = Live(get_renderable=self._view, console=terminal.err, refresh_per_second=4, transient=True)

    def _view(self) -> RenderableType:
        return live_view(self._progress, time.monotonic(), name=self._name)

    def close(self) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._progress = advance(self._progress, event, time.monotonic())
        if isinstance(event, RunStarted):
            self.has_started = True
            self._live.start()
        elif isinstance(event, RunFinished):
            self._live.stop()
        elif isinstance(event, Message):
            self._terminal.note(event.text, level="warning" if event.level == "warning" else "note")
        elif isinstance(event, TaskRetried):
            self._terminal.err.print(Text(f"retry: {retry_line(event)}", style="yellow"))


def start_text(event: RunStarted) -> str:
    kept = f", {event.kept_count} kept from an earlier run" if event.kept_count else ""
    return f"{plural(event.shard_count, 'shard')} into {event.out}{kept}, plan {event.plan_digest[:8]}"


@contextmanager
def display_for(terminal: Terminal, *, name: str) -> Iterator[Display]:
    """The display that suits where the command prints; a live one is taken down on the way out."""
    if terminal.json:
        yield JsonLines(terminal)
    elif terminal.quiet:
        yield Quiet(terminal)
    elif not terminal.err.is_terminal:
        yield Lines(terminal)
    else:
        bar = LiveBar(terminal, name)
        try:
            yield bar
        finally:
            bar.close()
