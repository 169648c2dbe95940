"""Hosts that vanish, drain, fall silent or die with the driver: the same bytes, and only the lost work again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from host_lab import Host
from hosts import DETECTION_SECONDS, SIDE_BYTES, Merge, RayLab

from raymerge.storage import store_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

# A silent host is given up some 22 s after its task began, and must be so before nothing else is left to start: at 20 s
# the task would then get a second attempt, and the merge end without having lost anything.
SECONDS_PER_TENSOR = 3.0
Figure = Callable[[str, object], None]


@dataclass(frozen=True)
class Undisturbed:
    digest: dict[str, str]
    read_bytes: int
    seconds: float
    shard_bytes: int


def shard_count(merge: Merge) -> int:
    return merge.of("run_started")[0]["shard_count"]


@pytest.fixture(scope="module")
def undisturbed(cluster: RayLab) -> Undisturbed:
    """A run that nothing happens to: what all others must equal, and what they may read."""
    cluster.have_workers(3)
    out, before, began = f"{cluster.models}/undisturbed", cluster.store.sent_bytes(), time.monotonic()
    merge = cluster.merge(cluster.recipe(seconds=SECONDS_PER_TENSOR), out).finish()
    read = cluster.store.sent_bytes() - before
    assert merge.retries == []
    assert {event["node"] for event in merge.of("task_started")} == {host.address for host in cluster.workers}
    announced = merge.of("run_started")[0]["read_bytes"]
    assert announced <= read <= announced * 1.05 + SIDE_BYTES
    return Undisturbed(
        digest=cluster.digest(out),
        read_bytes=read,
        seconds=time.monotonic() - began,
        shard_bytes=max(event["read_bytes"] for event in merge.of("task_finished")),
    )


def start(cluster: RayLab, name: str) -> tuple[Merge, str, int]:
    cluster.have_workers(3)
    out = f"{cluster.models}/{name}"
    before = cluster.store.sent_bytes()
    return cluster.merge(cluster.recipe(seconds=SECONDS_PER_TENSOR), out), out, before


def midway(merge: Merge) -> bool:
    """Some shards are done and all workers are at work."""
    return len(merge.of("task_finished")) >= 4 and merge.lost_count >= 3


def last_started(cluster: RayLab, merge: Merge) -> Host:
    """The host of the task that began last, once it has read what it needs."""
    host = cluster.at(merge.of("task_started")[-1]["node"])
    time.sleep(0.8)
    return host


def check(cluster: RayLab, undisturbed: Undisturbed, merge: Merge, out: str, before: int, *, lost: int = -1) -> str:
    """The same model, no stray upload, and no more read again than the lost attempts read; says how much."""
    again = cluster.store.sent_bytes() - before - undisturbed.read_bytes
    lost = merge.lost_count if lost < 0 else lost
    share = lost * undisturbed.shard_bytes
    assert cluster.digest(out) == undisturbed.digest
    assert store_for(out).unfinished(out) == ()
    assert again <= share * 1.05 + SIDE_BYTES, (again, share)
    return f"same digest; {lost} attempts lost; read again {max(again, 0) / 1e6:.1f} MB of at most {share / 1e6:.1f} MB"


@pytest.mark.point(1, "undisturbed")
def test_an_undisturbed_run(undisturbed: Undisturbed, record_property: Figure) -> None:
    text = f"{len(undisturbed.digest)} files, {undisturbed.read_bytes / 1e6:.1f} MB read"
    record_property("figure", f"{text}, {undisturbed.seconds:.0f} s")


@pytest.mark.point(1, "SIGKILL of a worker host")
def test_a_killed_host_costs_its_tasks(cluster: RayLab, undisturbed: Undisturbed, record_property: Figure) -> None:
    merge, out, before = start(cluster, "killed")
    merge.wait_until(midway)
    victim = last_started(cluster, merge)
    cluster.kill(victim)
    merge.finish()
    assert set(merge.retries) == {"node lost"}
    record_property("figure", check(cluster, undisturbed, merge, out, before))


@pytest.mark.point(1, "SIGTERM of a worker host")
def test_a_host_that_is_shut_down_drains(cluster: RayLab, undisturbed: Undisturbed, record_property: Figure) -> None:
    merge, out, before = start(cluster, "drained")
    merge.wait_until(midway)
    victim = last_started(cluster, merge)
    assert victim.signal(signal.SIGTERM, "raylet/raylet") == 1
    told_at = time.time() + 1  # what was on its way arrives
    merge.finish()
    assert victim.address not in [event["node"] for event in merge.of("task_started") if event["time"] > told_at]
    assert set(merge.retries) <= {"node lost"}
    record_property("figure", check(cluster, undisturbed, merge, out, before))


@pytest.mark.point(1, "link down past detection, then up")
def test_a_host_that_falls_silent_and_comes_back_does_no_harm(
    cluster: RayLab, undisturbed: Undisturbed, record_property: Figure
) -> None:
    """It was given up, and its task runs again elsewhere while the zombie may still write."""
    merge, out, before = start(cluster, "silent")
    merge.wait_until(midway)
    victim = last_started(cluster, merge)
    victim.set_link(up=False)
    try:
        merge.wait_until(lambda merge: "node lost" in merge.retries)
    finally:
        victim.set_link(up=True)
    merge.finish()
    time.sleep(DETECTION_SECONDS)  # whatever the zombie still does, it does now
    cluster.kill(victim)
    assert set(merge.retries) == {"node lost"}
    record_property("figure", check(cluster, undisturbed, merge, out, before))


@pytest.mark.point(1, "head killed, new cluster, same command")
def test_the_same_command_on_a_new_cluster_continues(
    cluster: RayLab, undisturbed: Undisturbed, record_property: Figure
) -> None:
    """The head dies with the driver on it, and the workers with their cluster."""
    merge, out, before = start(cluster, "head")
    merge.wait_until(midway)
    lost = merge.lost_count
    cluster.stop()
    merge.kill()
    cluster.start_head()
    cluster.have_workers(3)
    again = cluster.merge(cluster.recipe(seconds=SECONDS_PER_TENSOR), out).finish()
    kept = again.of("run_started")[0]["kept_count"]
    assert kept >= 4
    assert again.retries == []
    text = check(cluster, undisturbed, again, out, before, lost=lost + again.lost_count)
    record_property("figure", f"{kept} of {shard_count(again)} shards kept; {text}")
