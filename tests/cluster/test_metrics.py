"""Ray metrics of a run, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from cluster_files import FOLDER

from raymerge.events import Event, Message, TaskFinished, TaskRetried, TaskStarted
from raymerge.execute.ray import metrics

DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_exists_and_every_metric_is_shown() -> None:
    shown = {name for expression in expressions() for name in re.findall(r"\b([a-z_]+)(?=[\[{])", expression)}
    assert shown == {f"ray_{name}_total" for name in metrics.METRICS}


def test_tags_of_the_dashboard_exist() -> None:
    for expression in expressions():
        for tags, name in re.findall(r"by \((\w+)\) \(.*?ray_(\w+)_total", expression):
            assert tags in metrics.METRICS[name][1]


def test_events_are_counted_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[Any] = Counter()
    now = iter([0.0, 2.0, 5.0, 9.0])

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0
            assert set(tags) == set(metrics.METRICS[self.name][1])
            counts[(self.name, *tags.values())] += value

    monkeypatch.setattr(metrics, "_counter", Recorder)
    seen: list[Event] = []
    events: list[Event] = [
        TaskStarted(task="a", node="n"),  # after 2 s
        TaskRetried(task="a", cause="node lost", detail="", attempt=1, limit=None, wait_seconds=1.0),  # at 5 s
        TaskStarted(task="a", node="m"),  # at 9 s, 3 s after the retry was due
        TaskFinished(
            task="a", read_bytes=10, written_bytes=0, seconds=4.0, phase_seconds=(("read", 3.0), ("write", 0.0))
        ),
        Message(text="unrelated"),
    ]
    listen = metrics.counted(seen.append, clock=lambda: next(now))
    for event in events:
        listen(event)
    assert seen == events
    assert counts == {
        ("raymerge_task_seconds", "wait"): 5.0,
        ("raymerge_task_seconds", "run"): 4.0,
        ("raymerge_task_seconds", "read"): 3.0,
        ("raymerge_retries", "node lost"): 1,
        ("raymerge_read_bytes",): 10,
        ("raymerge_shards_done",): 1,
    }
