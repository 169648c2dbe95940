"""Seconds of a task by phase: what is slow shows in its own phase and in no other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama

import raymerge
from raymerge.events import Event, TaskFinished
from raymerge.merging import shard
from raymerge.storage.local import LocalStore
from raymerge.storage.local_writer import LocalWriter

REST = 0.03


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        time.sleep(REST)
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("phase", "owner", "name"),
    [("read", LocalStore, "read_into"), ("compute", shard, "merge_held"), ("write", LocalWriter, "write")],
)
def test_a_slow_phase_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, owner: Any, name: str
) -> None:
    for seed, model in enumerate("ab"):
        write_llama(tmp_path / model, seed=seed, layers=3)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / model), "parameters": {"weight": 0.5}} for model in "ab"],
    }
    raymerge.merge(recipe, tmp_path / "warm", executor="inline", task_cpus=1)
    monkeypatch.setattr(owner, name, slowed(getattr(owner, name)))
    events: list[Event] = []
    raymerge.merge(recipe, tmp_path / "out", executor="inline", task_cpus=1, on_event=events.append)
    (finished,) = [event for event in events if isinstance(event, TaskFinished)]
    seconds = dict(finished.phase_seconds)
    assert seconds.keys() == {"read", "compute", "write"}
    assert max(seconds, key=lambda each: seconds[each]) == phase
    assert seconds[phase] > 5 * REST
