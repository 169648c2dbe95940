"""What a run says of itself while it goes on, and what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from raymerge.events import Event, Message, RunFinished, RunStarted, TaskRetried
from raymerge.output.journal import Destination
from raymerge.planning.nouns import Plan, ShardReceipt
from raymerge.running import ShardWork, needs_survey
from raymerge.sizes import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge made. `kept_count` shards were finished by an earlier run of the same plan.

    `nonfinite` counts merged values that are not finite by tensor, in kept shards too; `peak_bytes` is the largest
    memory of a worker, its baseline included.
    """

    out: str
    plan_digest: str
    shard_count: int
    kept_count: int
    nbytes: int
    seconds: float
    retries: int
    nonfinite: dict[str, int]
    peak_bytes: int


def ignore_event(event: Event) -> None:
    """Nobody watches."""


class Watch:
    """Passes a run's events on, and counts what the result tells."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._started = time.monotonic()
        self._retries = 0

    def __call__(self, event: Event) -> None:
        self._retries += isinstance(event, TaskRetried)
        self._on_event(event)

    def result(self, planned: Plan, destination: Destination, receipts: Sequence[ShardReceipt]) -> MergeResult:
        """Tell that the run is over, and how it went."""
        nonfinite = {name: count for receipt in receipts for name, count in receipt.nonfinite}
        for name, count in nonfinite.items():
            self._on_event(Message(text=f"{name}: {count} results are not finite", level="warning"))
        read_back = sum(receipt.read_back_bytes for receipt in receipts)
        if read_back:
            text = "were read back for their checksum: the store tells none of what it copies"
            self._on_event(Message(text=f"{format_size(read_back)} {text}"))
        result = MergeResult(
            out=destination.out,
            plan_digest=planned.digest,
            shard_count=len(planned.shards),
            kept_count=len(destination.kept),
            nbytes=sum(receipt.nbytes for receipt in receipts),
            seconds=time.monotonic() - self._started,
            retries=self._retries,
            nonfinite=nonfinite,
            peak_bytes=max((receipt.peak_bytes for receipt in receipts), default=0),
        )
        self._on_event(
            RunFinished(
                out=result.out,
                nbytes=result.nbytes,
                shard_count=result.shard_count,
                kept_count=result.kept_count,
                seconds=result.seconds,
                retries=result.retries,
            )
        )
        return result


def run_started(planned: Plan, destination: Destination, work: Sequence[ShardWork]) -> RunStarted:
    to_make = [each.shard for each in work if not each.only_checksum]
    return RunStarted(
        plan_digest=planned.digest,
        out=destination.out,
        shard_count=len(planned.shards),
        kept_count=len(destination.kept),
        read_bytes=sum(shard.read_bytes for shard in to_make)
        + (planned.survey_bytes if needs_survey(planned, work) else 0),
        write_bytes=sum(shard.tensor_bytes for shard in to_make),
    )


def remarks(planned: Plan, side_files: Iterable[str]) -> Iterator[Message]:
    """What a plan warns of, and code among the small files: who loads the output runs what its donor's author wrote."""
    for warning in planned.warnings:
        yield Message(text=str(warning), level="warning")
    names = sorted(name for name in side_files if name.endswith(".py"))
    if names:
        yield Message(text=f"code of {planned.donor.reference} is copied along and not run: {', '.join(names)}")
