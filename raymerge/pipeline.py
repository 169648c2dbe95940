"""A merge from recipe to model: read, plan, execute, finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymerge.errors import PlanError, RecipeError
from raymerge.events import Event
from raymerge.opening import open_models
from raymerge.options import MergeOptions
from raymerge.plan.build import build_plan
from raymerge.plan.nouns import Plan
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
    chosen = MergeOptions(**options)
    started = time.monotonic()
    target = normalize_url(str(out))
    with open_runner(chosen, on_event) as run:
        planned = make_plan(config, target, chosen)
        receipts = list(run(planned, target, tuple(ShardWork(shard=shard) for shard in planned.shards)))
    return MergeResult(
        out=target,
        plan_digest=planned.digest,
        shard_count=len(planned.shards),
        kept_count=0,
        nbytes=sum(receipt.nbytes for receipt in receipts),
        seconds=time.monotonic() - started,
        retries=0,
    )


def plan(config: Config, out: str | Path | None = None, **options: Any) -> Plan:
    target = normalize_url(str(out)) if out is not None else None
    return make_plan(config, target, MergeOptions(**options))


def load_recipe(config: Config) -> Recipe:
    """Raises RecipeError with everything that is wrong with the recipe's form."""
    return check_recipe(read_recipe_text(config, read_url=_read_url))


def make_plan(config: Config, out: str | None, options: MergeOptions) -> Plan:
    parsed = parse_recipe(read_recipe_text(config, read_url=_read_url))
    if parsed.recipe is None:
        raise RecipeError(*parsed.problems)
    opened = open_models(parsed.recipe)
    return build_plan(
        parsed.recipe,
        opened.checkpoints,
        options.planning(out),
        known_problems=(*parsed.problems, *opened.problems),
        known_warnings=parsed.warnings,
    )


def _read_url(url: str) -> str:
    return store_for(url).read(url, max_bytes=_MAX_RECIPE_BYTES).decode()
