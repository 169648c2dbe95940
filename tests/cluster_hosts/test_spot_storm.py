"""Hosts are taken and given every few seconds, until as many attempts died as there are shards: it still ends."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from hosts import SIDE_BYTES, Merge, RayLab

from raymerge.storage import store_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

SECONDS_PER_TENSOR = 0.5
SHARD_SIZE = "6MB"


def run(cluster: RayLab, out: str) -> Merge:
    return cluster.merge(cluster.recipe(seconds=SECONDS_PER_TENSOR), out, shard_size=SHARD_SIZE)


def storm(cluster: RayLab, merge: Merge, deaths: int, rng: random.Random) -> int:
    """Kill hosts at work, each replaced at once; returns how many."""
    killed = 0
    while killed < deaths and merge.process.poll() is None:
        busy = [host for host in cluster.workers if host.address in merge.running(seconds=1)]
        if busy:
            cluster.kill(rng.choice(busy))
            cluster.add_worker()
            killed += 1
        time.sleep(rng.uniform(0.5, 3))
    return killed


@pytest.mark.point(2, "spot storm")
def test_half_of_all_attempts_die(cluster: RayLab, record_property: Callable[[str, object], None]) -> None:
    cluster.have_workers(3)
    before, began = cluster.store.sent_bytes(), time.monotonic()
    calm = run(cluster, f"{cluster.models}/calm").finish()
    calm_bytes, calm_seconds = cluster.store.sent_bytes() - before, time.monotonic() - began
    expected = cluster.digest(f"{cluster.models}/calm")
    shard_count = calm.of("run_started")[0]["shard_count"]

    before, began, out = cluster.store.sent_bytes(), time.monotonic(), f"{cluster.models}/storm"
    merge = run(cluster, out)
    killed = storm(cluster, merge, shard_count, random.Random(7))
    merge.finish(seconds=600)
    again, seconds = cluster.store.sent_bytes() - before - calm_bytes, time.monotonic() - began
    assert merge.lost_count == killed == shard_count
    assert set(merge.retries) == {"node lost"}
    assert cluster.digest(out) == expected
    assert store_for(out).unfinished(out) == ()
    share = merge.lost_count * max(event["read_bytes"] for event in merge.of("task_finished"))
    assert again <= share * 1.05 + SIDE_BYTES
    record_property(
        "figure",
        f"same digest; {merge.lost_count} of {merge.started_count} attempts lost; read again {again / 1e6:.1f} MB "
        f"of at most {share / 1e6:.1f} MB; {seconds:.0f} s instead of {calm_seconds:.0f} s",
    )
