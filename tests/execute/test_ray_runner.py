"""What the runner of merges tells the executor, shown with an executor that only notes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raymerge.errors import UsageError
from raymerge.execute.ray import executor
from raymerge.execute.ray.options import RayOptions
from raymerge.execute.task import measure_nothing
from raymerge.options import MergeOptions
from raymerge.running import RayRunner


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[RayOptions]:
    seen: list[RayOptions] = []
    monkeypatch.setattr(executor, "run_on_ray", lambda *_, options, **__: iter((seen.append(options),)[:0]))
    return seen


def run(told: list[RayOptions], *, is_private: bool, **options: Any) -> RayOptions:
    session: Any = SimpleNamespace(is_private=is_private)
    runner = RayRunner(MergeOptions(**options), lambda _: None, session)
    list(runner._outcomes(len, [], on_event=lambda _: None, measure=measure_nothing))
    return told[-1]


def test_a_private_ray_waits_for_no_other_node(told: list[RayOptions]) -> None:
    private = run(told, is_private=True)
    assert (private.settle_seconds, private.unschedulable_seconds) == (0, 0)
    shared = run(told, is_private=False)
    assert shared.settle_seconds > 15  # a vanished node is seen by then
    assert 30 <= shared.unschedulable_seconds < 60


def test_what_a_task_asks_for(told: list[RayOptions]) -> None:
    plain = run(told, is_private=False)
    assert (plain.task_cpus, plain.task_gpus, plain.max_tasks) == (1, 0, None)
    assert run(told, is_private=False, device="cuda").task_gpus == 1
    shared = run(told, is_private=False, device="cuda", task_gpus=0.5, max_tasks=7, task_cpus=3)
    assert (shared.task_cpus, shared.task_gpus, shared.max_tasks) == (3, 0.5, 7)


def test_tasks_prefer_spot_nodes_unless_others_are_named(told: list[RayOptions]) -> None:
    assert run(told, is_private=False).prefer_labels == {"market-type": "spot"}
    assert run(told, is_private=False, prefer_nodes=("pool=a", "disk=b")).prefer_labels == {"pool": "a", "disk": "b"}
    assert run(told, is_private=False, prefer_nodes=()).prefer_labels == {}


@pytest.mark.parametrize(
    "options",
    [
        {"max_tasks": 0}, {"max_tasks": 1.5}, {"task_gpus": -1}, {"task_gpus": "one"},
        {"prefer_nodes": ("spot",)}, {"prefer_nodes": ("=spot",)}, {"prefer_nodes": "market-type=spot"},
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        MergeOptions(**options)
