"""raymerge plan"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

import raymerge
from raymerge.cli import options
from raymerge.cli.compatibility import Compatibility, with_compatibility
from raymerge.cli.screens.plan import Surroundings, plan_screen, plan_values
from raymerge.cli.screens.prediction import prediction_screen, prediction_values
from raymerge.cli.screens.text import plural
from raymerge.cli.terminal import failures_reported, open_terminal
from raymerge.errors import Problem, UsageError
from raymerge.output.journal import Destination, inspect_destination
from raymerge.planning.copies import Movement, movement
from raymerge.planning.instances import Cluster, described_cluster, parse_cluster
from raymerge.planning.nouns import Plan
from raymerge.planning.prediction import predict
from raymerge.running import WORKER_BASELINE_BYTES
from raymerge.storage import is_local, normalize_url, store_for
from raymerge.storage.hub_spool import written_at

ESTIMATE = "Estimate"

OptionalOut = Annotated[
    str | None, typer.Argument(metavar="[OUT]", help="Where the merge would go; it is probed, not written.")
]
ClusterText = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="MACHINES",
        help='Estimate time and cost there: "20 x c7gn.4xlarge".',
        rich_help_panel=ESTIMATE,
    ),
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Instead: so many machines,", rich_help_panel=ESTIMATE)
]
Gbps = Annotated[
    float | None, typer.Option("--gbps", min=0.001, help="with so much network each,", rich_help_panel=ESTIMATE)
]
Cores = Annotated[int | None, typer.Option("--cores", min=1, help="and so many cores.", rich_help_panel=ESTIMATE)]


@with_compatibility
def plan(
    *,
    config: options.Config,
    out: OptionalOut = None,
    out_shard_size: options.OutShardSize = "2GB",
    random_seed: options.RandomSeed = 0,
    device: options.Device = None,
    copy_tokenizer: options.CopyTokenizer = True,
    write_model_card: options.WriteModelCard = True,
    overwrite: options.Overwrite = False,
    private: options.Private = True,
    nan: options.Nan = options.NonFinite.ERROR,
    keep_inputs: options.KeepInputs = False,
    methods: options.Methods = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    executor: options.ExecutorChoice = options.Executor.RAY,
    address: options.Address = None,
    task_cpus: options.TaskCpus = None,
    task_memory: options.TaskMemory = None,
    cluster: ClusterText = None,
    nodes: Nodes = None,
    gbps: Gbps = None,
    cores: Cores = None,
    compatibility: Compatibility,
) -> None:
    """Show what a merge would do, from headers alone. Takes every option of merge, so that one word changes."""
    terminal = open_terminal(json=json, quiet=quiet, verbosity=verbose)
    for notice in compatibility.notices:
        terminal.note(notice)
    target = None if out is None else options.read_out(out)
    with failures_reported(terminal, options.config_name(config)):
        machines = wanted_cluster(cluster, nodes=nodes, gbps=gbps, cores=cores)
        began = time.monotonic()
        made = raymerge.plan(
            options.read_config(config),
            target,
            random_seed=random_seed,
            executor=executor.value,
            device=device or compatibility.device or "cpu",
            address=address,
            task_cpus=task_cpus or compatibility.threads,
            overwrite=overwrite,
            private=private,
            nan=nan.value,
            copy_tokenizer=copy_tokenizer,
            write_model_card=write_model_card,
            keep_inputs=keep_inputs,
            methods=options.read_paths(methods),
            **options.sizes(out_shard_size=out_shard_size, task_memory=task_memory),
        )
        around = Surroundings(
            seconds=time.monotonic() - began,
            out=out or "",
            free_bytes=free_bytes(target),
            host_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            resume=resume_at(made, target, overwrite=overwrite) if target else "",
            movement=store_movement(made, target),
            task_count=task_count(len(made.shards), executor=executor, task_cpus=task_cpus or compatibility.threads),
        )
        estimate = None
        if machines is not None:
            estimate = predict(
                made,
                machines,
                movement=around.movement,
                task_threads=task_cpus or compatibility.threads or 1,
                baseline_bytes=WORKER_BASELINE_BYTES,
            )
        if json:
            estimated = {"estimate": prediction_values(estimate)} if estimate is not None else {}
            terminal.json_line({**plan_values(made, around), **estimated})
        elif not quiet:
            terminal.result(plan_screen(made, around))
            if estimate is not None:
                terminal.result(prediction_screen(estimate))


def wanted_cluster(cluster: str | None, *, nodes: int | None, gbps: float | None, cores: int | None) -> Cluster | None:
    """The machines that the options describe in either way; None where they describe none."""
    if nodes is None and gbps is None and cores is None:
        return parse_cluster(cluster) if cluster is not None else None
    if cluster is not None:
        raise UsageError(
            Problem(subject="--cluster", message="names the machines that --nodes, --gbps and --cores describe too")
        )
    if nodes is None or gbps is None or cores is None:
        missing = [f"--{name}" for name, given in (("nodes", nodes), ("gbps", gbps), ("cores", cores)) if given is None]
        raise UsageError(
            Problem(subject=" and ".join(missing), message="not given", remedy="write --nodes N --gbps G --cores C")
        )
    return described_cluster(nodes=nodes, gbps=gbps, cores=cores)


def store_movement(made: Plan, out: str | None) -> Movement | None:
    """What moves, and what the store of `out` copies by itself; None for no output, and for a disk, where all moves."""
    url = normalize_url(out) if out is not None else ""
    return None if is_local(url) else movement(made.shards, store_for(url))


def resume_at(made: Plan, out: str, *, overwrite: bool) -> str:
    return resume_text(inspect_destination(made, written_at(normalize_url(out)), overwrite=overwrite))


def resume_text(found: Destination) -> str:
    """What the output folder means for a run: how much of it is there already."""
    if found.is_complete and not found.problems:
        return "complete, nothing to do"
    finished = f"{plural(len(found.kept), 'finished shard')} kept" if found.kept else "nothing there yet"
    if found.foreign:
        return f"{finished}, {plural(len(found.foreign), 'foreign weight file')} to replace"
    return finished


def free_bytes(out: str | None) -> int | None:
    """Free bytes of the disk that holds `out`, or would; None for remote locations."""
    if out is None or "://" in out:
        return None
    folder = Path(out).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def task_count(shard_count: int, *, executor: options.Executor, task_cpus: int | None) -> int:
    """How many shards this host makes at once: the inline executor makes one after the other, with threads."""
    if executor is options.Executor.INLINE:
        return min(1, shard_count)
    return max(1, min(shard_count, (os.cpu_count() or 1) // (task_cpus or 1)))
