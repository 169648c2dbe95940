"""Workers without raymerge get the driver's; workers with other libraries are refused by name before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosts import ROOT, RayLab

from raymerge.storage import store_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_worker_without_raymerge_gets_it_from_the_driver(cluster: RayLab) -> None:
    cluster.add_worker(hidden=[ROOT / "raymerge"])
    cluster.wait_for_workers(1)
    out = f"{cluster.models}/sent"
    merge = cluster.merge(cluster.recipe(), out).finish()
    assert merge.retries == []
    assert {event["node"] for event in merge.of("task_finished")} == {cluster.workers[0].address}


def test_a_worker_with_another_torch_is_refused(cluster: RayLab, tmp_path: Path) -> None:
    cluster.have_workers(1)
    fake = tmp_path / "torch-1.0.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    other = cluster.add_worker(env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    cluster.wait_for_workers(2)
    out = f"{cluster.models}/refused"
    merge = cluster.merge(cluster.recipe(), out)
    assert merge.process.wait(60) == 2
    (error,) = merge.of("error")
    (problem,) = error["problems"]
    assert problem["subject"] == other.address
    assert problem["message"].startswith("runs torch 1.0, the driver 2.")
    assert "one image" in problem["remedy"]
    assert store_for(out).list(out) == ()
    cluster.kill(other)
    merge.kill()
