"""Ray's own faults: failing calls, raylets that die or freeze beside a living worker, workers that end themselves."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import RayLab

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

Figure = Callable[[str, object], None]
SHARD_SIZE = "6MB"
# Of every call between Ray's processes, 5 in 100 fail: before they arrive, on the way, or after they were carried out.
FAILING_CALLS = {
    "num_failures": -1, "req_failure_prob": 2, "resp_failure_prob": 2, "in_flight_failure_prob": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(cluster: RayLab) -> dict[str, str]:
    cluster.have_workers(2)
    out = f"{cluster.models}/plain"
    cluster.merge(cluster.recipe(), out, shard_size=SHARD_SIZE).finish()
    return tensors_of(cluster, out)


def tensors_of(cluster: RayLab, out: str) -> dict[str, str]:
    """Shards only hold the plan's digest besides their tensors: recipes here differ by how they rest and die."""
    from raymerge.storage import store_for

    store = store_for(out)
    found = {}
    for info in store.list(out):
        if info.url.endswith(".safetensors"):
            content = store.read(info.url, max_bytes=1 << 28)
            start = 8 + int.from_bytes(content[:8], "little")
            found[info.url.rpartition("/")[2]] = str(hash(content[start:]))
    return found


@pytest.mark.point(3, "raylet lost, its worker left")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_raylet_is_lost(
    cluster: RayLab, expected: dict[str, str], how: signal.Signals, record_property: Figure
) -> None:
    """A frozen one says nothing, and its worker goes on: the worker's shard is made twice, with the same bytes."""
    cluster.have_workers(2)
    out = f"{cluster.models}/raylet-{how.name}"
    merge = cluster.merge(cluster.recipe(seconds=1.0), out, shard_size=SHARD_SIZE)
    merge.wait_until(lambda merge: len(merge.running(seconds=1)) == 2)
    victim = cluster.at(merge.running(seconds=1)[0])
    assert victim.signal(how, "raylet/raylet") == 1
    merge.finish()
    cluster.kill(victim)
    assert set(merge.retries) <= {"node lost"}
    assert tensors_of(cluster, out) == expected
    record_property("figure", f"{how.name}: {len(merge.retries)} retries, same tensors")


@pytest.mark.point(3, "worker kills itself at its first attempt at every shard")
def test_workers_end_themselves_once_for_each_shard(
    cluster: RayLab, expected: dict[str, str], record_property: Figure, tmp_path: Path
) -> None:
    for worker in list(cluster.workers):
        cluster.kill(worker)
    for _ in range(2):
        cluster.add_worker(env={"MARKS": str(tmp_path)})
    cluster.wait_for_workers(2)
    out = f"{cluster.models}/suicides"
    merge = cluster.merge(cluster.recipe(), out, shard_size=SHARD_SIZE).finish()
    for worker in list(cluster.workers):
        cluster.kill(worker)
    assert merge.retries == ["worker died"] * len(expected)
    assert {event["attempt"] for event in merge.of("task_retried")} == {1}
    assert tensors_of(cluster, out) == expected
    record_property("figure", f"{len(merge.retries)} workers died for {len(expected)} shards")


@pytest.fixture
def failing_calls(ray_lab: RayLab, expected: dict[str, str]) -> Iterator[RayLab]:
    """A cluster of its own; `expected` comes first, since it is made on the other."""
    ray_lab.stop()
    ray_lab.extra_env["RAY_testing_rpc_failure"] = json.dumps({"*": FAILING_CALLS})
    try:
        ray_lab.start_head()
        yield ray_lab
    finally:
        ray_lab.extra_env.clear()
        ray_lab.stop()


@pytest.mark.point(3, "5% of Ray's calls fail")
def test_calls_of_ray_that_fail(failing_calls: RayLab, expected: dict[str, str], record_property: Figure) -> None:
    failing_calls.have_workers(2)
    out = f"{failing_calls.models}/calls"
    merge = failing_calls.merge(failing_calls.recipe(seconds=0.1), out, shard_size=SHARD_SIZE).finish()
    assert tensors_of(failing_calls, out) == expected
    for host in (failing_calls.head, *failing_calls.workers):  # Ray notes where it lets calls fail
        search = host.inside(["grep", "-rlE", "RpcFailureManager|[Ii]nject", "/tmp/ray"])
        assert subprocess.run(search, capture_output=True, check=False).returncode == 0, host.name
    record_property("figure", f"{len(merge.retries)} retries ({', '.join(sorted(set(merge.retries))) or 'none'})")
