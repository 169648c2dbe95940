"""Running a plan's shard tasks in this process or on Ray, and what each task calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from raymerge.events import Event
from raymerge.options import MergeOptions
from raymerge.plan.nouns import Plan, ShardReceipt, ShardTask

OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """One task for a worker: make the shard, or only read the checksum of one that an earlier run finished."""

    shard: ShardTask
    only_checksum: bool = False


Runner = Callable[[Plan, str, tuple[ShardWork, ...]], Iterator[ShardReceipt]]


@contextmanager
def open_runner(options: MergeOptions, on_event: OnEvent) -> Iterator[Runner]:
    """A runner for the chosen executor; a private Ray starts at once, so that it is ready when the plan is."""

    def run(plan: Plan, out: str, work: tuple[ShardWork, ...]) -> Iterator[ShardReceipt]:
        from raymerge.merge.shard import ShardOptions, checksum_shard, run_shard

        shard_options = ShardOptions(
            out=out, memory=options.memory(out), device=options.device, fail_on_nonfinite=options.nan == "error"
        )
        for each in work:
            yield (checksum_shard if each.only_checksum else run_shard)(each.shard, shard_options)

    yield run
