"""Running a plan's shard tasks in this process or on Ray, and what each task calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from raymerge.events import Event
from raymerge.execute.inline import run_inline
from raymerge.execute.task import Outcome, StoppedError, Task, stop_requested
from raymerge.merging.nouns import ShardOptions
from raymerge.options import MergeOptions
from raymerge.planning.nouns import ShardReceipt, ShardTask

OnEvent = Callable[[Event], None]

# A worker with numpy, numba, its compiled kernels and a storage client, before it reads a tensor: measured 190 MB with
# local files and 240 MB with S3 on Linux, Python 3.11.
WORKER_BASELINE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """One task for a worker: make the shard, or only read the checksum of one that an earlier run finished."""

    shard: ShardTask
    only_checksum: bool = False


Run = Callable[[str, tuple[ShardWork, ...]], Iterator[ShardReceipt]]


@contextmanager
def open_runner(options: MergeOptions, on_event: OnEvent) -> Iterator[Run]:
    """What runs shard work into a folder on the chosen executor; a private Ray starts at once, beside the planning."""
    if options.executor == "inline":

        def run(out: str, work: tuple[ShardWork, ...]) -> Iterator[ShardReceipt]:
            function = partial(do_work, options=_shard_options(options, out))
            yield from _receipts(run_inline(function, _tasks(work), on_event=on_event, measure=_measure))

        yield run
        return
    from raymerge.running_on_ray import ray_runner

    with ray_runner(options, on_event) as run_on_ray:
        yield run_on_ray


def do_work(work: ShardWork, *, options: ShardOptions) -> ShardReceipt:
    """What every task calls, in whatever process it runs."""
    from raymerge.merging.shard import checksum_shard, run_shard

    if work.only_checksum:
        return checksum_shard(work.shard, options)
    return run_shard(work.shard, options, _raise_if_stopped)


def _raise_if_stopped() -> None:
    if stop_requested():
        raise StoppedError


def _shard_options(options: MergeOptions, out: str) -> ShardOptions:
    return ShardOptions(
        out=out, memory=options.memory(out), device=options.device, fail_on_nonfinite=options.nan == "error"
    )


def _tasks(work: tuple[ShardWork, ...]) -> list[Task[ShardWork]]:
    return [
        Task(
            name=each.shard.file_name,
            payload=each,
            memory_bytes=WORKER_BASELINE_BYTES + (0 if each.only_checksum else each.shard.projected_bytes),
        )
        for each in work
    ]


def _receipts(outcomes: Iterator[Outcome[ShardReceipt]]) -> Iterator[ShardReceipt]:
    for outcome in outcomes:
        yield replace(outcome.result, node=outcome.node)


def _measure(receipt: ShardReceipt) -> tuple[int, int]:
    return receipt.read_bytes, receipt.nbytes
