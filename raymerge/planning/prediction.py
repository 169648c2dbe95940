"""How long a plan takes on a cluster and what it costs: arithmetic on the plan and on what a core was seen to do.

Only CPU seconds per gigabyte are measured (calibration.py). The rest is a model: bytes over the network's rate,
requests over the store's rate, shards dealt out to nodes, and a boot time. Reading, merging and writing overlap, so
the slowest of them is the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raymerge.planning import calibration
from raymerge.planning.copies import Movement
from raymerge.planning.instances import PRICES_AS_OF, Cluster
from raymerge.planning.jobs import COPY
from raymerge.planning.nouns import Plan, ShardTask, TensorJob

# What an instance takes from the request for it to the first task: boot, installation, joining the cluster.
BOOT_SECONDS = 180.0
# Of the network's nominal rate, what a busy node gets through many connections to an object store.
USABLE_NETWORK = 0.8
# Of a node's memory, what Ray lets tasks declare.
USABLE_MEMORY = 0.7
# S3, per second and prefix; each model folder is one, and so is the output.
GETS_PER_SECOND = 5_500
PUTS_PER_SECOND = 3_500
# How ranges and parts are cut.
BYTES_PER_GET = 8e6
BYTES_PER_PUT = 16 << 20
BYTES_PER_COPY = 64 << 20
DOLLARS_PER_GET = 0.4e-6
DOLLARS_PER_PUT = 5e-6
# Twice the nodes are worth while if they save this share of the time.
WORTHWHILE = 0.1
BOOT = "node boot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a plan asks of a cluster. Means and the largest are over the shards that workers make.

    `task_bytes` is the memory that one task declares; `unmeasured` are methods whose CPU time is a guess.
    """

    shard_count: int
    read_bytes: int
    written_bytes: int
    cpu_seconds: float
    largest_cpu_seconds: float
    gets: float
    puts: float
    prefixes: int
    task_bytes: int
    task_threads: int = 1
    unmeasured: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """`seconds_by_resource` are what each resource alone would take, the longest (`binding`) first.

    `enough_nodes` is the number beyond which twice as many save less than a tenth of the time; `useful_nodes` the
    number beyond which nothing at all is saved. Costs are None where no price is known.
    """

    cluster: Cluster
    seconds: float
    seconds_by_resource: Mapping[str, float]
    binding: str
    enough_nodes: int
    useful_nodes: int
    dollars: float | None
    spot_dollars: float | None
    request_dollars: float
    assumptions: tuple[str, ...]


def predict(
    plan: Plan, cluster: Cluster, *, movement: Movement | None, task_threads: int, baseline_bytes: int
) -> Prediction:
    """`movement` tells what a store copies by itself; `baseline_bytes` is a worker's memory before it reads."""
    work = workload(plan, movement=movement, task_threads=task_threads, baseline_bytes=baseline_bytes)
    resources = resource_seconds(work, cluster)
    seconds = total_seconds(work, cluster)
    machine = cluster.machine
    hours = cluster.nodes * seconds / 3600
    ordered = sorted({**resources, BOOT: BOOT_SECONDS}.items(), key=lambda item: -item[1])
    return Prediction(
        cluster=cluster,
        seconds=seconds,
        seconds_by_resource=dict(ordered),
        binding=ordered[0][0],
        enough_nodes=enough_nodes(work, cluster),
        useful_nodes=max(1, work.shard_count),
        dollars=hours * machine.dollars_per_hour if machine.dollars_per_hour else None,
        spot_dollars=hours * machine.spot_dollars_per_hour if machine.spot_dollars_per_hour else None,
        request_dollars=work.gets * DOLLARS_PER_GET + work.puts * DOLLARS_PER_PUT,
        assumptions=assumptions(work, cluster),
    )


def workload(plan: Plan, *, movement: Movement | None, task_threads: int, baseline_bytes: int) -> Workload:
    copied = movement.copied_bytes if movement is not None else 0
    read_bytes = (movement.read_bytes if movement is not None else plan.read_bytes) + plan.survey_bytes
    written_bytes = plan.output_bytes - copied
    merging = [shard_seconds(shard) for shard in plan.shards]
    moving = calibration.READ_SECONDS_PER_GB * read_bytes + calibration.WRITE_SECONDS_PER_GB * written_bytes
    # Shards that are copied inside the store need no worker.
    working = [shard for shard in plan.shards if not copied or any(job.method != COPY for job in shard.jobs)]
    largest = max(plan.shards, key=lambda shard: shard.read_bytes, default=None)
    largest_moving = 0.0
    if largest is not None and working:
        largest_moving = calibration.READ_SECONDS_PER_GB * largest.read_bytes
        largest_moving += calibration.WRITE_SECONDS_PER_GB * largest.tensor_bytes
    return Workload(
        shard_count=len(working),
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        cpu_seconds=sum(merging) + moving / 1e9,
        largest_cpu_seconds=max(merging, default=0.0) + largest_moving / 1e9,
        gets=read_bytes / BYTES_PER_GET + len(plan.shards),
        puts=written_bytes / BYTES_PER_PUT + copied / BYTES_PER_COPY + 3 * len(plan.shards),
        prefixes=max(1, len({model.url for model in plan.models})),
        task_bytes=baseline_bytes + max((shard.projected_bytes for shard in plan.shards), default=0),
        task_threads=task_threads,
        unmeasured=tuple(
            name for name in plan.methods if name != COPY and name not in calibration.MERGE_SECONDS_PER_GB
        ),
    )


def shard_seconds(shard: ShardTask) -> float:
    """CPU seconds of merging a shard's tensors, once they are in memory."""
    return sum(_job_seconds(job) for job in shard.jobs if job.method != COPY)


def _job_seconds(job: TensorJob) -> float:
    rates = calibration.MERGE_SECONDS_PER_GB
    elements = sum(ref.spec.element_count for ref in job.refs)
    return rates.get(job.method, max(rates.values())) * 2 * elements / 1e9  # rates are per GB of bfloat16


def tasks_per_node(work: Workload, cluster: Cluster) -> int:
    by_memory = int(cluster.machine.memory_bytes * USABLE_MEMORY) // work.task_bytes
    return max(1, min(cluster.machine.cores // work.task_threads, by_memory))


def resource_seconds(work: Workload, cluster: Cluster) -> dict[str, float]:
    """What each resource takes, were it the only one. The node with most shards decides."""
    shards = work.shard_count
    if not shards:
        return {"requests": work.puts / PUTS_PER_SECOND}
    on_one = -(-shards // cluster.nodes)
    share = on_one / shards
    bytes_per_second = cluster.machine.gbps * 1e9 / 8 * USABLE_NETWORK
    one_after_the_other = -(-on_one // tasks_per_node(work, cluster))
    mean_cpu_seconds = work.cpu_seconds / shards
    threads = min(work.task_threads, cluster.machine.cores)
    return {
        "network in": work.read_bytes * share / bytes_per_second,
        "network out": work.written_bytes * share / bytes_per_second,
        "CPU": max(one_after_the_other * mean_cpu_seconds, work.largest_cpu_seconds) / threads,
        "requests": max(work.gets / work.prefixes / GETS_PER_SECOND, work.puts / PUTS_PER_SECOND),
    }


def total_seconds(work: Workload, cluster: Cluster) -> float:
    return BOOT_SECONDS + max(resource_seconds(work, cluster).values())


def enough_nodes(work: Workload, cluster: Cluster) -> int:
    """The least number of nodes of which twice as many save less than a tenth of the time."""
    for nodes in range(1, max(1, work.shard_count)):
        now, twice = (total_seconds(work, replace(cluster, nodes=count)) for count in (nodes, 2 * nodes))
        if twice > (1 - WORTHWHILE) * now:
            return nodes
    return max(1, work.shard_count)


def assumptions(work: Workload, cluster: Cluster) -> tuple[str, ...]:
    measured = f"{calibration.MEASURED_ON}, {calibration.MACHINE}, off by up to {calibration.ERROR:.0%} there"
    lines = [
        f"CPU: measured on {measured}; other cores differ by more, and so do many at once",
        f"network: {USABLE_NETWORK:.0%} of {cluster.machine.gbps:g} Gb/s each way, a store in the same region",
        f"requests: {BYTES_PER_GET / 1e6:.0f} MB each; {GETS_PER_SECOND:,} reads a model and second, none throttled",
        f"nodes: {BOOT_SECONDS:.0f} s until the first task, {tasks_per_node(work, cluster)} tasks each, none lost",
    ]
    if cluster.machine.dollars_per_hour:
        lines.append(f"prices: {PRICES_AS_OF}, in the cheapest large US region, without the head; spot prices move")
    lines += [f"{name}: not measured, taken for the slowest method" for name in work.unmeasured]
    return tuple(lines)
