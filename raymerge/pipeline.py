"""A merge from recipe to model: read, plan, execute, finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymerge.errors import PlanError, RecipeError
from raymerge.events import Event, RunStarted
from raymerge.opening import open_models
from raymerge.options import MergeOptions
from raymerge.output.journal import (
    Destination,
    begin,
    finish,
    inspect_destination,
    known_receipts,
    probe_destination,
)
from raymerge.output.side_files import side_files
from raymerge.output.tokenizer_choice import choose_tokenizer
from raymerge.planning.build import build_plan
from raymerge.planning.nouns import Plan, ShardReceipt
from raymerge.recipe.load import load_recipe as check_recipe
from raymerge.recipe.load import parse_recipe, read_recipe_text
from raymerge.recipe.nouns import Recipe
from raymerge.running import ShardWork, open_runner
from raymerge.storage import normalize_url, store_for

if TYPE_CHECKING:
    import torch

Config = str | Path | Mapping[str, Any]
_MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge made. `kept_count` shards were finished by an earlier run of the same plan."""

    out: str
    plan_digest: str
    shard_count: int
    kept_count: int
    nbytes: int
    seconds: float
    retries: int


def ignore_event(event: Event) -> None:
    """Nobody watches."""


def merge(
    config: Config, out: str | Path, *, on_event: Callable[[Event], None] = ignore_event, **options: Any
) -> MergeResult:
    """Merge the models of a recipe into folder or URL `out`; the keywords are the fields of `MergeOptions`.

    `config` is a path, a URL, YAML text or a mapping. The same call continues what an earlier one did not finish.
    Raises RaymergeError: before anything is written where the recipe, its inputs or the destination are to blame.
    """
    chosen = MergeOptions(**options)
    started = time.monotonic()
    target = normalize_url(str(out))
    with open_runner(chosen, on_event) as runner:  # a private Ray starts while the plan is made
        planned, destination = _plan_for(config, target, chosen)
        runner.check(planned, target)
        begin(planned, destination, side_files(planned, write_model_card=chosen.write_model_card))
        known = known_receipts(planned, destination)
        work = _work(planned, destination, known)
        on_event(_run_started(planned, destination, work))
        receipts = [*known, *runner.run(target, work)]
        finish(planned, target, receipts)
    return MergeResult(
        out=target,
        plan_digest=planned.digest,
        shard_count=len(planned.shards),
        kept_count=len(destination.kept),
        nbytes=sum(receipt.nbytes for receipt in receipts),
        seconds=time.monotonic() - started,
        retries=0,
    )


def tensors(config: Config, **options: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The output's tensors by name, in the order of its files, merged one at a time and written nowhere.

    Takes the options that bear on values (`random_seed`, `device`, ...); memory holds one tensor and its inputs.
    """
    from raymerge.merging.memory import merged_tensors

    chosen = MergeOptions(**options)
    planned = _make_plan(config, None, chosen)
    yield from merged_tensors(planned, device=chosen.device)


def plan(config: Config, out: str | Path | None = None, **options: Any) -> Plan:
    """Plan a merge from headers alone. With `out`, the destination is checked as `merge` would, and nothing written.

    Raises PlanError with everything that is wrong.
    """
    chosen = MergeOptions(**options)
    if out is None:
        return _make_plan(config, None, chosen)
    planned, _ = _plan_for(config, normalize_url(str(out)), chosen)
    return planned


def load_recipe(config: Config) -> Recipe:
    """Raises RecipeError with everything that is wrong with the recipe's form."""
    return check_recipe(read_recipe_text(config, read_url=_read_url))


def _plan_for(config: Config, out: str, options: MergeOptions) -> tuple[Plan, Destination]:
    planned = _make_plan(config, out, options)
    destination = inspect_destination(planned, out, overwrite=options.overwrite)
    if destination.problems:
        raise PlanError(*destination.problems)
    return planned, destination


def _make_plan(config: Config, out: str | None, options: MergeOptions) -> Plan:
    parsed = parse_recipe(read_recipe_text(config, read_url=_read_url))
    if parsed.recipe is None:
        raise RecipeError(*parsed.problems)
    opened = open_models(parsed.recipe)
    unusable = probe_destination(out, (each.url for each in opened.checkpoints.values())) if out is not None else ()
    tokenizer = choose_tokenizer(parsed.recipe, opened.checkpoints)
    return build_plan(
        parsed.recipe,
        opened.checkpoints,
        options.planning(out),
        known_problems=(*parsed.problems, *opened.problems, *tokenizer.problems, *unusable),
        known_warnings=(*parsed.warnings, *tokenizer.warnings),
        tokenizer_donor=tokenizer.donor,
    )


def _work(planned: Plan, destination: Destination, known: tuple[ShardReceipt, ...]) -> tuple[ShardWork, ...]:
    """What is left to do: shards to make, and finished ones whose checksum nobody lived to note."""
    settled = {receipt.file_name for receipt in known}
    return tuple(
        ShardWork(shard=shard, only_checksum=shard.file_name in destination.kept)
        for shard in planned.shards
        if shard.file_name not in settled
    )


def _run_started(planned: Plan, destination: Destination, work: tuple[ShardWork, ...]) -> RunStarted:
    to_make = [each.shard for each in work if not each.only_checksum]
    return RunStarted(
        plan_digest=planned.digest,
        out=destination.out,
        shard_count=len(planned.shards),
        kept_count=len(destination.kept),
        read_bytes=sum(shard.read_bytes for shard in to_make),
        write_bytes=sum(shard.tensor_bytes for shard in to_make),
    )


def _read_url(url: str) -> str:
    return store_for(url).read(url, max_bytes=_MAX_RECIPE_BYTES).decode()
