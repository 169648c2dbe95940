"""Where tasks run: on preferred nodes first, not for long on nodes that go, and twice where one hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import task_functions as functions
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from raymerge.events import Event, Message, TaskFinished, TaskRetried, TaskStarted
from raymerge.execute.ray import executor
from raymerge.execute.ray.executor import run_on_ray
from raymerge.execute.ray.options import RayOptions
from raymerge.execute.ray.pace import Pace
from raymerge.execute.ray.session import RaySession

HERE = Path(__file__).resolve().parent
NODE = {"num_cpus": 1, "memory": 2**30, "object_store_memory": 80 * 2**20}
PREEMPTED = 2
SPOT = {"market-type": "spot"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parents[1]), str(HERE)]))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        cluster.add_node(**NODE)
        cluster.add_node(**NODE, labels=SPOT)
        try:
            with RaySession(cluster.address) as session:
                session.wait()
                while len([node for node in ray.nodes() if node["Alive"]]) < 3:
                    time.sleep(0.1)
                yield cluster
        finally:
            cluster.shutdown()


def ignore(_event: Event) -> None:
    pass


def wait_until_idle() -> None:
    """Both nodes are free, and Ray's nodes have told each other so."""
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)


def spot_ids() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Labels"].get("market-type") == "spot"}


def test_tasks_prefer_nodes_with_a_label_and_spill_to_others(cluster: Cluster, tmp_path: Path) -> None:
    options = RayOptions(prefer_labels=SPOT)
    for index in range(3):  # one at a time: each could run on either node
        wait_until_idle()
        (outcome,) = run_on_ray(
            functions.rest, functions.tasks_of((str(tmp_path / f"{index}"), 0.0)), on_event=ignore, options=options
        )
        assert {outcome.result} == spot_ids()
    together = functions.tasks_of(*[(str(tmp_path / f"t{index}"), 2.0) for index in range(6)])
    outcomes = list(run_on_ray(functions.rest, together, on_event=ignore, options=options))
    assert len({outcome.result for outcome in outcomes}) == 2
    absent = RayOptions(prefer_labels={"market-type": "unheard-of"})
    (outcome,) = run_on_ray(
        functions.rest, functions.tasks_of((str(tmp_path / "x"), 0.0)), on_event=ignore, options=absent
    )
    assert outcome.result


def test_a_task_that_hangs_is_tried_a_second_time_beside(cluster: Cluster, tmp_path: Path) -> None:
    events: list[Event] = []
    tasks = functions.tasks_of(*[str(tmp_path / name) for name in ("a", "b", "c", "hangs")])
    began = time.monotonic()
    outcomes = list(
        run_on_ray(functions.hang_once, tasks, on_event=events.append, options=RayOptions(straggler_seconds=1.0))
    )
    assert time.monotonic() - began < 30
    assert sorted(outcome.name for outcome in outcomes) == ["t0", "t1", "t2", "t3"]
    assert functions.runs(str(tmp_path / "hangs")) == 2
    assert [event for event in events if isinstance(event, TaskRetried)] == []
    assert len([event for event in events if isinstance(event, TaskFinished)]) == 4
    (message,) = [event.text for event in events if isinstance(event, Message)]
    assert "t3 has run for" in message
    wait_until_idle()  # the one that hung is gone


def test_second_attempts_are_few_late_and_only_where_others_have_ended() -> None:
    now = [0.0]
    pace = Pace(task_count=40, straggler_seconds=20, clock=lambda: now[0])
    now[0] = 1000.0
    assert not pace.allows_second_attempt(started_at=0)  # nothing is known
    pace.note(10)
    now[0] = 29.0
    assert not pace.allows_second_attempt(started_at=0)  # less than three times the usual
    now[0] = 31.0
    assert [pace.allows_second_attempt(started_at=0) for _ in range(4)] == [True, True, False, False]  # 5% of 40


def test_a_node_that_goes_keeps_only_what_can_end_in_time() -> None:
    now = [100.0]
    pace = Pace(task_count=4, clock=lambda: now[0])
    assert pace.ends_before(101, started_at=99)  # nothing is known
    pace.note(10)
    assert not pace.ends_before(108, started_at=99)
    assert not pace.ends_before(110, started_at=99)  # no time to clean up
    assert pace.ends_before(112, started_at=99)
    assert pace.ends_before(float("inf"), started_at=99)
    assert pace.ends_before(101, started_at=80)  # later than usual: it may end any moment


def test_a_notice_stops_what_cannot_end_in_time_and_it_runs_elsewhere(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without spending a retry, and before the node is gone."""
    monkeypatch.setattr(executor, "_NODES_SECONDS", 0.2)
    events: list[tuple[float, Event]] = []
    noticed: list[tuple[str, float]] = []
    paths = [str(tmp_path / f"{index}") for index in range(3)]

    def give_notice(event: Event) -> None:
        events.append((time.monotonic(), event))
        finished = [each for _, each in events if isinstance(each, TaskFinished)]
        if finished and isinstance(event, TaskStarted) and not noticed:
            path = paths[int(event.task[1:])]
            while not functions.lines(path):
                time.sleep(0.02)
            node_id = functions.lines(path)[0]
            noticed.append((event.task, time.monotonic()))
            deadline_ms = int((time.time() + 4) * 1000)
            accepted, _ = GcsClient(address=cluster.address).drain_node(node_id, PREEMPTED, "spot", deadline_ms)
            assert accepted

    options = RayOptions(retry_wait_seconds=0.05, settle_seconds=6)
    tasks = functions.tasks_of(*[(path, 4.0) for path in paths])
    outcomes = list(run_on_ray(functions.rest, tasks, on_event=give_notice, options=options))
    assert len(outcomes) == 3
    ((task, told_at),) = noticed
    ((retried_at, retried),) = [(at, event) for at, event in events if isinstance(event, TaskRetried)]
    assert (retried.task, retried.cause, retried.limit) == (task, "node lost", None)
    assert "goes before the task could end" in retried.detail
    assert retried_at - told_at < 3
    first, interrupted, second = functions.lines(paths[int(task[1:])])
    assert interrupted == "interrupted"
    assert first != second
