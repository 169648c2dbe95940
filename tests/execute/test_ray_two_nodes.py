"""Laws of running on a cluster, shown on two nodes beside a head that takes no tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import task_functions as functions
from ray.cluster_utils import Cluster

from raymerge.errors import UsageError
from raymerge.events import Event, TaskRetried, TaskStarted
from raymerge.execute.local_paths import nonce_in
from raymerge.execute.ray import code
from raymerge.execute.ray.code import environment_of_tasks
from raymerge.execute.ray.executor import run_on_ray
from raymerge.execute.ray.nodes import NodeVersions, local_versions, node_versions, nodes_without, version_differences
from raymerge.execute.ray.options import RayOptions
from raymerge.execute.ray.session import RaySession
from raymerge.execute.task import Outcome

HERE = Path(__file__).resolve().parent
NODE = {"num_cpus": 1, "memory": 2**30, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Started as if by another user: its workers find the tests, but nothing else of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parents[1]), str(HERE)]))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # A raylet that is gone is declared dead after some 2 seconds instead of 15.
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        cluster.add_node(**NODE)
        cluster.add_node(**NODE)
        try:
            with RaySession(cluster.address) as session:
                session.wait()
                yield cluster
            assert not ray.is_initialized()
            assert cluster.head_node.any_processes_alive()  # left alone
        finally:
            cluster.shutdown()


@pytest.fixture
def two_nodes(cluster: Cluster) -> Cluster:
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**NODE)
    while len([node for node in ray.nodes() if node["Alive"]]) != 3:
        time.sleep(0.1)
    return cluster


def remove(cluster: Cluster, node_id: str) -> None:
    cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == node_id), allow_graceful=False)


@pytest.mark.parametrize("worker_first", [False, True])
def test_a_task_whose_node_is_lost_runs_again_on_another(
    two_nodes: Cluster, tmp_path: Path, worker_first: bool
) -> None:
    """Also where the dying node ends its workers a moment before it goes: the task is not blamed."""
    path, events = str(tmp_path / "nodes"), []

    def lose_the_first_node(event: Event) -> None:
        events.append(event)
        if isinstance(event, TaskStarted) and len(events) == 1:
            while len(functions.lines(path)) < 2:
                time.sleep(0.02)
            node_id, pid = functions.lines(path)
            if worker_first:
                os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.2)
            remove(two_nodes, node_id)

    options = RayOptions(retry_wait_seconds=0.05, settle_seconds=6)
    (outcome,) = run_on_ray(
        functions.wait_on_first_node, functions.tasks_of(path), on_event=lose_the_first_node, options=options
    )
    assert outcome.result != functions.lines(path)[0]
    retries = [event for event in events if isinstance(event, TaskRetried)]
    assert [(event.cause, event.limit) for event in retries] == [("node lost", None)]


def test_no_room_waits_for_a_node_that_joins(two_nodes: Cluster) -> None:
    outcomes: list[Outcome[functions.Receipt]] = []
    tasks = functions.tasks_of(3, memory_bytes=2 * 2**30)
    run = threading.Thread(target=lambda: outcomes.extend(run_on_ray(functions.square, tasks, on_event=lambda _: None)))
    run.start()
    time.sleep(0.5)
    large = two_nodes.add_node(**{**NODE, "memory": 3 * 2**30})
    run.join(30)
    assert [outcome.result.value for outcome in outcomes] == [9]
    remove(two_nodes, large.node_id)


def test_every_node_that_takes_tasks_is_asked_for_the_nonce(two_nodes: Cluster, tmp_path: Path) -> None:
    with nonce_in(tmp_path) as nonce:
        assert nodes_without(nonce.path, nonce.value) == []
        assert len(nodes_without(nonce.path, "another")) == 2
    assert len(nodes_without(nonce.path, nonce.value)) == 2
    assert list(tmp_path.iterdir()) == []


def test_versions_of_every_node(two_nodes: Cluster) -> None:
    found, driver = node_versions(), local_versions()
    assert [node.versions for node in found] == [driver.versions] * 2
    assert dict(driver.versions).keys() == {"raymerge", "torch", "numba"}
    assert version_differences(driver, found) == ()
    other = NodeVersions(address="10.0.0.3", versions=(*driver.versions[:1], ("torch", "2.0"), *driver.versions[2:]))
    (difference,) = version_differences(driver, [other])
    assert "10.0.0.3: runs torch 2.0" in str(difference)


def test_code_is_sent_where_a_node_lacks_it(two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing is: workers of a job's own environment would have to start anew."""
    assert environment_of_tasks() == {}
    driver = local_versions()
    lacking = [NodeVersions(address="10.0.0.3", versions=(("raymerge", ""), *driver.versions[1:]))]
    same = [NodeVersions(address="10.0.0.3", versions=driver.versions)]
    for found in (lacking, []):
        monkeypatch.setattr(code, "node_versions", lambda env=None, found=found: same if env else found)
        (address,) = environment_of_tasks()["py_modules"]
        assert address.startswith("gcs://")
    monkeypatch.setattr(code, "node_versions", lambda env=None: lacking)
    with pytest.raises(UsageError, match=r"10\.0\.0\.3: runs another raymerge"):
        environment_of_tasks()
    other = [NodeVersions(address="10.0.0.3", versions=(*driver.versions[:1], ("torch", ""), *driver.versions[2:]))]
    monkeypatch.setattr(code, "node_versions", lambda env=None: other)
    with pytest.raises(UsageError, match=r"10\.0\.0\.3: runs torch not at all, the driver 2\..*one image"):
        environment_of_tasks()


def test_a_cluster_that_runs_here_is_joined_only_by_name(cluster: Cluster, tmp_path: Path) -> None:
    """The same process shows that a private Ray prints nothing, not even when a worker dies, and has no autoscaler."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    done = subprocess.run(
        [sys.executable, str(HERE / "private_run.py"), "report", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["address"] != cluster.address
    assert (report["nodes"], report["results"], report["autoscalers"]) == (1, ["survived"], 0)
