"""How far a run is: a state that events advance, and the ways it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raymerge.cli.screens.text import duration, plural
from raymerge.events import Event, RunStarted, TaskFinished, TaskRetried, TaskStarted, TaskSurveyed
from raymerge.sizes import format_size

_MOST_NODE_LINES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProgress:
    """What came of the tasks that ran on one node."""

    done_count: int = 0
    done_bytes: int = 0
    failed_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands. Times are of one monotonic clock; `running` holds each task's start and node."""

    started_at: float
    shard_count: int = 0
    kept_count: int = 0
    done_count: int = 0
    total_bytes: int = 0
    done_bytes: int = 0
    running: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    nodes: Mapping[str, NodeProgress] = field(default_factory=dict)

    def elapsed(self, now: float) -> float:
        return max(now - self.started_at, 0.0)

    def bytes_per_second(self, now: float) -> float:
        elapsed = self.elapsed(now)
        return self.done_bytes / elapsed if elapsed > 0 else 0.0

    def seconds_left(self, now: float) -> float | None:
        """None until something is done."""
        speed = self.bytes_per_second(now)
        return max(self.total_bytes - self.done_bytes, 0) / speed if speed > 0 else None


def advance(progress: Progress, event: Event, now: float) -> Progress:
    """The state after `event`; events that say nothing about progress leave it as it is."""
    if isinstance(event, RunStarted):
        return Progress(
            started_at=now,
            shard_count=event.shard_count,
            kept_count=event.kept_count,
            total_bytes=event.read_bytes + event.write_bytes,
        )
    if isinstance(event, TaskStarted):
        nodes = _noted(progress.nodes, event.node)
        return replace(progress, running={**progress.running, event.task: (now, event.node)}, nodes=nodes)
    if isinstance(event, TaskRetried):
        retries = Counter(progress.retries)
        retries[event.cause] += 1
        running, nodes = _without(progress.running, event.task), _noted(progress.nodes, event.node, failed_count=1)
        return replace(progress, running=running, retries=dict(retries), nodes=nodes)
    if isinstance(event, TaskSurveyed):
        running = _without(progress.running, event.task)
        nodes = _noted(progress.nodes, event.node, done_count=1, done_bytes=event.read_bytes)
        return replace(progress, running=running, done_bytes=progress.done_bytes + event.read_bytes, nodes=nodes)
    if isinstance(event, TaskFinished):
        nbytes = event.read_bytes + event.written_bytes
        return replace(
            progress,
            nodes=_noted(progress.nodes, event.node, done_count=1, done_bytes=nbytes),
            running=_without(progress.running, event.task),
            done_count=progress.done_count + 1,
            done_bytes=progress.done_bytes + nbytes,
        )
    return progress


def _noted(
    nodes: Mapping[str, NodeProgress], name: str, *, done_count: int = 0, done_bytes: int = 0, failed_count: int = 0
) -> Mapping[str, NodeProgress]:
    if not name:
        return nodes
    node = nodes.get(name, NodeProgress())
    return {
        **nodes,
        name: NodeProgress(
            done_count=node.done_count + done_count,
            done_bytes=node.done_bytes + done_bytes,
            failed_count=node.failed_count + failed_count,
        ),
    }


def _without(running: Mapping[str, tuple[float, str]], task: str) -> dict[str, tuple[float, str]]:
    return {name: since for name, since in running.items() if name != task}


def progress_line(progress: Progress, now: float) -> str:
    """One line for a log: "1/8 shards   3.7 of 29.0 GB   118 MB/s   3m35s left"."""
    return "   ".join([*_figures(progress, now), *_retried(progress)])


def live_view(progress: Progress, now: float, *, name: str) -> RenderableType:
    """The display on a terminal: a bar with figures, who works, what was retried, and a line for each of many nodes."""
    bar = ProgressBar(total=max(progress.total_bytes, 1), completed=progress.done_bytes)
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(no_wrap=True, max_width=24, style="bold")
    row.add_column(ratio=1)
    figures = _figures(progress, now)
    for _ in figures:
        row.add_column(no_wrap=True)
    row.add_row(Text(name), bar, *figures)
    details = [f"{len(progress.running)} running{_nodes(progress)}", *_retried(progress), *_slowest(progress, now)]
    lines = ["   ".join(details), *_node_lines(progress, now)]
    return Group(row, *(Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in lines))


def _node_lines(progress: Progress, now: float) -> list[str]:
    """Nodes at work first; none where there is but one."""
    if len(progress.nodes) < 2:
        return []
    running = Counter(node for _, node in progress.running.values())
    names = sorted(progress.nodes, key=lambda name: not running[name])
    width = max(map(len, names))
    lines = [
        _node_line(progress.nodes[name], name.ljust(width), running[name], progress.elapsed(now)) for name in names
    ]
    left = len(lines) - _MOST_NODE_LINES
    return lines if left <= 0 else [*lines[:_MOST_NODE_LINES], f"and {plural(left, 'more node')}"]


def _node_line(node: NodeProgress, name: str, running_count: int, elapsed: float) -> str:
    speed = node.done_bytes / elapsed if elapsed > 0 else 0.0
    failed = [f"{node.failed_count} failed"] if node.failed_count else []
    figures = [f"{running_count} running", f"{node.done_count} done", format_size(node.done_bytes)]
    return "   ".join([name, *figures, f"{format_size(speed)}/s", *failed])


def _figures(progress: Progress, now: float) -> list[str]:
    left = progress.seconds_left(now)
    done = min(progress.kept_count + progress.done_count, progress.shard_count)  # a kept shard may be a task too
    return [
        f"{done}/{plural(progress.shard_count, 'shard')}",
        f"{format_size(progress.done_bytes)} of {format_size(progress.total_bytes)}",
        f"{format_size(progress.bytes_per_second(now))}/s",
        "starting" if left is None else f"{duration(left)} left",
    ]


def _nodes(progress: Progress) -> str:
    nodes = {node for _, node in progress.running.values() if node}
    return f" on {plural(len(nodes), 'node')}" if len(nodes) > 1 else ""


def _retried(progress: Progress) -> list[str]:
    if not progress.retries:
        return []
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(progress.retries.items()))
    return [f"retried {sum(progress.retries.values())}: {causes}"]


def _slowest(progress: Progress, now: float) -> list[str]:
    if not progress.running:
        return []
    task, (since, node) = min(progress.running.items(), key=lambda item: item[1][0])
    return [f"slowest: {task}, {duration(now - since)}{f', {node}' if node else ''}"]


def retry_line(event: TaskRetried) -> str:
    """As in "shard 5: hub said 429, waiting 12 s (try 2 of 8)"."""
    tries = f"try {event.attempt + 1}" + (f" of {event.limit}" if event.limit is not None else "")
    wait = f", waiting {duration(event.wait_seconds)}" if event.wait_seconds >= 1 else ""
    where = f" on {event.node}" if event.node else ""
    return f"{event.task}{where}: {event.cause}: {event.detail}{wait} ({tries})"
