"""A merge from recipe to model: read, plan, execute, finish."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymerge.errors import ExecutionError, PlanError, Problem, RecipeError, UsageError
from raymerge.events import Event
from raymerge.merging.receipts import nonfinite_problems
from raymerge.methods import load_methods
from raymerge.opening import keep_in_cache, open_models
from raymerge.options import MergeOptions, merge_options
from raymerge.output.hub_destination import publication
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
from raymerge.planning.binding import model_references
from raymerge.planning.build import build_plan
from raymerge.planning.jobs import CONVERT
from raymerge.planning.nouns import Plan, ShardReceipt
from raymerge.recipe.load import load_recipe as check_recipe
from raymerge.recipe.load import parse_recipe, read_recipe_text
from raymerge.recipe.nouns import Recipe
from raymerge.reporting import MergeResult, Watch, ignore_event, remarks, run_started
from raymerge.running import InlineRunner, needs_survey, open_runner, shards_to_do
from raymerge.storage import is_local, normalize_url, store_for
from raymerge.storage.hub_spool import written_at

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from raymerge.options import MergeKeywords

Config = str | Path | Mapping[str, Any]
_MAX_RECIPE_BYTES = 1 << 20


def merge(
    config: Config,
    out: str | Path,
    *,
    on_event: Callable[[Event], None] = ignore_event,
    **options: Unpack[MergeKeywords],
) -> MergeResult:
    """Merge the models of a recipe into folder or URL `out`; the keywords are the fields of `MergeOptions`.

    `config` is a path, a URL, YAML text or a mapping. The same call continues what an earlier one did not finish.
    Raises RaymergeError: before anything is written where the recipe, its inputs or the destination are to blame.
    """
    chosen = merge_options(options)
    named = _target(out)
    target = written_at(named)
    published = publication(target, private=chosen.private, overwrite=chosen.overwrite)
    watch = Watch(on_event)
    # A private Ray starts while the plan is made.
    with open_runner(chosen, watch, expect_work=_likely_needs_workers(config, target)) as runner:
        planned, destination = _plan_for(config, target, chosen)
        if chosen.keep_inputs and keep_in_cache(planned.models):
            planned, destination = _plan_for(config, target, chosen)
        small = side_files(planned, write_model_card=chosen.write_model_card)
        destination = published.look(planned, destination, small)
        known = known_receipts(planned, destination)
        _refuse_nonfinite(known, chosen)
        work = shards_to_do(planned, destination, known)
        runner.check(planned, target, work)
        published.open()
        begin(planned, destination, small, is_tolerant=chosen.nan == "warn")
        destination = replace(destination, out=named)
        watch(run_started(planned, destination, work))
        for message in remarks(planned, small):
            watch(message)
        if needs_survey(planned, work):
            planned = runner.survey(planned, target)
            work = shards_to_do(planned, destination, known)
        receipts = [*known, *runner.run(planned, target, work)]
        finish(planned, target, receipts, small)
        published.publish()
    return watch.result(planned, destination, receipts)


def tensors(config: Config, **options: Unpack[MergeKeywords]) -> Iterator[tuple[str, torch.Tensor]]:
    """The output's tensors by name, in the order of its files, merged one at a time and written nowhere.

    Takes the options that bear on values (`random_seed`, `device`, `nan`, ...); memory holds one tensor and its inputs.
    """
    from raymerge.merging.memory import merged_tensors

    chosen = merge_options(options)
    planned = InlineRunner(chosen, ignore_event).survey(_make_plan(config, None, chosen), "")
    yield from merged_tensors(planned, device=chosen.device, fail_on_nonfinite=chosen.nan == "error")


def plan(config: Config, out: str | Path | None = None, **options: Unpack[MergeKeywords]) -> Plan:
    """Plan a merge from headers alone. With `out`, the destination is checked as `merge` would, and nothing written.

    Raises PlanError with everything that is wrong.
    """
    chosen = merge_options(options)
    if out is None:
        return _make_plan(config, None, chosen)
    planned, _ = _plan_for(config, written_at(_target(out)), chosen)
    return planned


def load_recipe(config: Config) -> Recipe:
    """Raises RecipeError with everything that is wrong with the recipe's form."""
    return check_recipe(read_recipe_text(config, read_url=_read_url))


def _target(out: str | Path) -> str:
    """The output's place; an empty name would be the working directory, which nobody means."""
    if not isinstance(out, str | os.PathLike) or not str(out).strip():
        raise UsageError(Problem(subject="out", message=f"found {out!r}", remedy="name a folder or a URL"))
    return normalize_url(str(out))


def _refuse_nonfinite(known: Sequence[ShardReceipt], options: MergeOptions) -> None:
    """Values that an earlier run only warned of are an error for this one, whoever made them."""
    if options.nan != "error":
        return
    found = [problem for each in known for problem in nonfinite_problems(each.file_name, dict(each.nonfinite))]
    if found:
        raise ExecutionError(*found)


def _plan_for(config: Config, out: str, options: MergeOptions) -> tuple[Plan, Destination]:
    planned = _make_plan(config, out, options)
    destination = inspect_destination(planned, out, overwrite=options.overwrite)
    if destination.problems:
        raise PlanError(*destination.problems)
    return planned, destination


def _make_plan(config: Config, out: str | None, options: MergeOptions) -> Plan:
    load_methods(options.methods)
    parsed = parse_recipe(read_recipe_text(config, read_url=_read_url))
    if parsed.recipe is None:
        raise RecipeError(*parsed.problems)
    opened = open_models(parsed.recipe)
    inputs = [part.url for each in opened.checkpoints.values() for part in each.parts]
    unusable = probe_destination(out, inputs) if out is not None else ()
    tokenizer = choose_tokenizer(parsed.recipe, opened.checkpoints)
    return build_plan(
        parsed.recipe,
        tokenizer.checkpoints,
        options.planning(out),
        known_problems=(*parsed.problems, *opened.problems, *tokenizer.problems, *unusable),
        known_warnings=(*parsed.warnings, *tokenizer.warnings),
        tokenizer_donor=tokenizer.donor,
        vocabulary=tokenizer.vocabulary,
    )


def _likely_needs_workers(config: Config, out: str) -> bool:
    """False for layers that are stacked inside one object store, which can copy them by itself."""
    if is_local(out):
        return True
    recipe = parse_recipe(read_recipe_text(config, read_url=_read_url)).recipe
    if recipe is None or recipe.merge_method != CONVERT:
        return True
    return not all(store_for(out).copies_from(model.path) for model in model_references(recipe))


def _read_url(url: str) -> str:
    return store_for(url).read(url, max_bytes=_MAX_RECIPE_BYTES).decode()
