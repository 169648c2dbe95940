"""Estimates of time and cost: what must hold for every plan and cluster, and figures that are known otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import write_llama
from hypothesis import given
from hypothesis import strategies as st
from planning import checkpoint, llama_names, plan_of
from typer.testing import CliRunner

from raymerge.cli.app import app
from raymerge.errors import UsageError
from raymerge.methods import all_methods
from raymerge.methods.extension import origin_of
from raymerge.planning import calibration
from raymerge.planning.copies import Movement
from raymerge.planning.instances import INSTANCE_TYPES, Cluster, described_cluster, parse_cluster
from raymerge.planning.nouns import Plan
from raymerge.planning.prediction import (
    BOOT,
    BOOT_SECONDS,
    USABLE_NETWORK,
    Prediction,
    Workload,
    enough_nodes,
    predict,
    resource_seconds,
    total_seconds,
)

TIES_70B = Workload(
    shard_count=10_000,  # many small ones: their number plays no part
    read_bytes=564 * 10**9,
    written_bytes=141 * 10**9,
    cpu_seconds=600.0,
    largest_cpu_seconds=0.1,
    gets=70_000,
    puts=9_000,
    prefixes=4,
    task_bytes=10**9,
)
WORKLOADS = st.builds(
    Workload,
    shard_count=st.integers(0, 300),
    read_bytes=st.integers(0, 10**12),
    written_bytes=st.integers(0, 10**12),
    cpu_seconds=st.floats(0, 1e5, allow_subnormal=False),  # a sixteenth of the least of those is 0
    largest_cpu_seconds=st.floats(0, 1e3, allow_subnormal=False),
    gets=st.floats(0, 1e6),
    puts=st.floats(0, 1e6),
    prefixes=st.integers(1, 9),
    task_bytes=st.integers(1, 10**10),
    task_threads=st.integers(1, 64),
)
CLUSTERS = st.builds(Cluster, nodes=st.integers(1, 400), machine=st.sampled_from(INSTANCE_TYPES))


def stacked(layers: int = 3, method: str = "ties") -> Plan:
    shapes = llama_names(layers, hidden=512, inner=1024)
    recipe = f"merge_method: {method}\nbase_model: base\nmodels: [{{model: a, parameters: {{weight: 1}}}}]\n"
    return plan_of(recipe, checkpoint("base", shapes), checkpoint("a", shapes), shard_bytes=10**6)


def predicted(plan: Plan, cluster: Cluster, movement: Movement | None = None) -> Prediction:
    return predict(plan, cluster, movement=movement, task_threads=1, baseline_bytes=256 << 20)


@pytest.mark.parametrize(("nodes", "seconds"), [(8, 90), (32, 23), (100, 7.2)])
def test_a_70b_merge_at_the_limit_of_the_network(nodes: int, seconds: float) -> None:
    """564 GB in at 6.25 Gb/s a node: known by hand."""
    found = resource_seconds(TIES_70B, parse_cluster(f"{nodes} x m7i.4xlarge"))
    assert found["network in"] * USABLE_NETWORK == pytest.approx(seconds, rel=0.02)
    assert max(found, key=lambda name: found[name]) == "network in"


@given(WORKLOADS, CLUSTERS)
def test_more_nodes_never_take_longer(work: Workload, cluster: Cluster) -> None:
    assert total_seconds(work, replace(cluster, nodes=cluster.nodes * 2)) <= total_seconds(work, cluster)


@given(WORKLOADS, CLUSTERS)
def test_no_resource_does_more_than_it_can(work: Workload, cluster: Cluster) -> None:
    found = resource_seconds(work, cluster)
    machine = cluster.machine
    if work.shard_count:
        assert found["network in"] * machine.gbps * cluster.nodes >= work.read_bytes * 8e-9
        assert found["network out"] * machine.gbps * cluster.nodes >= work.written_bytes * 8e-9
        assert found["CPU"] * machine.cores * cluster.nodes >= work.cpu_seconds * 0.999
        assert found["CPU"] * machine.cores >= work.largest_cpu_seconds * 0.999


@given(WORKLOADS, CLUSTERS)
def test_where_more_nodes_stop_helping(work: Workload, cluster: Cluster) -> None:
    enough = enough_nodes(work, cluster)
    at = [total_seconds(work, replace(cluster, nodes=nodes)) for nodes in (enough, 2 * enough, work.shard_count or 1)]
    assert at[1] >= 0.9 * at[0] or enough == max(1, work.shard_count)
    assert at[2] == total_seconds(work, replace(cluster, nodes=10**6))


@pytest.mark.parametrize(
    ("binding", "change"),
    [
        ("network in", {"read_bytes": 10**15}),
        ("network out", {"written_bytes": 10**15}),
        ("CPU", {"cpu_seconds": 1e7}),
        ("requests", {"puts": 1e7}),
        (BOOT, {}),
    ],
)
def test_each_resource_can_bind(binding: str, change: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    work = replace(TIES_70B, **change)
    monkeypatch.setattr("raymerge.planning.prediction.workload", lambda *_, **__: work)
    found = predicted(stacked(), parse_cluster("20 x c7gn.4xlarge"))
    assert found.binding == binding
    longest = max(seconds for name, seconds in found.seconds_by_resource.items() if name != BOOT)
    assert found.seconds == pytest.approx(BOOT_SECONDS + longest)


def test_machines_are_paid_for_their_time() -> None:
    found = predicted(stacked(), parse_cluster("7 x c7gn.4xlarge"))
    price = found.cluster.machine
    assert found.dollars == pytest.approx(7 * found.seconds / 3600 * price.dollars_per_hour)
    assert found.spot_dollars == pytest.approx(7 * found.seconds / 3600 * price.spot_dollars_per_hour)
    described = predicted(stacked(), described_cluster(nodes=7, gbps=price.gbps, cores=price.cores))
    assert described.dollars is None
    assert described.seconds == found.seconds


def test_what_the_store_copies_passes_no_node() -> None:
    shapes = llama_names(3, hidden=512, inner=1024)
    slices = "slices: [{sources: [{model: a, layer_range: [0, 3]}]}, {sources: [{model: a, layer_range: [1, 3]}]}]"
    plan = plan_of(f"merge_method: passthrough\n{slices}\n", checkpoint("a", shapes))
    cluster = parse_cluster("c7gn.4xlarge")
    through = predicted(plan, cluster).seconds_by_resource
    inside = Movement(output_bytes=plan.output_bytes, copied_bytes=plan.output_bytes, read_bytes=0)
    assert through["network in"] > 0
    assert set(predicted(plan, cluster, inside).seconds_by_resource) == {"requests", BOOT}


def test_slower_methods_take_more_of_the_cores() -> None:
    cluster = parse_cluster("c7gn.4xlarge")
    seconds = {name: predicted(stacked(method=name), cluster).seconds_by_resource["CPU"] for name in ("ties", "della")}
    rates = calibration.MERGE_SECONDS_PER_GB
    assert (seconds["della"] > seconds["ties"]) == (rates["della"] > rates["ties"])


def test_every_method_is_measured() -> None:
    own = {name for name, method in all_methods().items() if not origin_of(method).sha256}
    assert set(calibration.MERGE_SECONDS_PER_GB) == own
    assert 0 < calibration.ERROR < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("20 x c7gn4xlarge", r"no machine 'c7gn4xlarge' in the table: .*; did you mean c7gn\.4xlarge\?"),
        ("0 x c7gn.4xlarge", "found '0 x c7gn.4xlarge'; write"),
        ("twenty", "no machine 'twenty'"),
        ("", "found ''; write"),
    ],
)
def test_clusters_that_nobody_knows(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--cluster: {message}"):
        parse_cluster(text)


def test_the_command_says_what_it_estimates_and_what_it_assumes(tmp_path: Path) -> None:
    for name in "ab":
        write_llama(tmp_path / name, tokenizer=False)
    config = tmp_path / "config.yaml"
    models = ", ".join(f"{{model: {tmp_path}/{name}, parameters: {{weight: 1}}}}" for name in "ab")
    config.write_text(f"merge_method: linear\nmodels: [{models}]\n")

    def shown(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["plan", str(config), *options])
        return result.exit_code, " ".join(result.output.split())

    code, text = shown("--cluster", "20 x c7gn.4xlarge")
    assert code == 0
    for part in ("20 x c7gn.4xlarge (16 cores", "time about 3m00s, $1.", "binds node boot 3m00s; then", "is a model",
                 calibration.MACHINE, f"off by up to {calibration.ERROR:.0%}", "prices: "):  # fmt: skip
        assert part in text
    code, text = shown("--nodes", "2", "--gbps", "10", "--cores", "4")
    assert code == 0
    assert "$" not in text
    assert shown("--nodes", "2", "--gbps", "10")[0] == 2
    assert shown("--nodes", "2", "--gbps", "10", "--cores", "4", "--cluster", "c7gn.4xlarge")[0] == 2
    result = CliRunner().invoke(app, ["plan", str(config), "--json", "--cluster", "2 x c7gn.4xlarge"])
    assert json.loads(result.output)["estimate"]["binding"] == BOOT
