"""Building a plan: pure, and with every problem found at once."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raymerge.checkpoint.config import layer_doubts, set_dtype, tie_word_embeddings, untied, with_layers
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.dtypes import DType
from raymerge.errors import PlanError, Problem
from raymerge.methods import all_methods
from raymerge.methods.declaration import Method
from raymerge.methods.extension import origin_of
from raymerge.planning.binding import WHOLE_MODEL, Binder, BoundModule, model_references, parameter_levels
from raymerge.planning.digest import plan_digest
from raymerge.planning.garbage import without_collection
from raymerge.planning.jobs import JobMaker, Rules, is_embedding, is_head, is_kept
from raymerge.planning.layouts import Layouts, align_layouts
from raymerge.planning.ledger import DROPPED, Ledger
from raymerge.planning.memory import MemoryRules, project, too_small
from raymerge.planning.nouns import AlignedVocabulary, Plan, ShardTask, TensorJob
from raymerge.planning.parameters import Problems, check_names
from raymerge.planning.phases import survey_passes, survey_problems, surveyed_names
from raymerge.planning.rows import parameter_rows
from raymerge.planning.shards import Placed, file_names, order, partition
from raymerge.planning.sites import Site, model_sites, slice_sites
from raymerge.planning.summary import plan_summary
from raymerge.recipe.nouns import ModelReference, Recipe
from raymerge.recipe.suggest import did_you_mean, suggest
from raymerge.storage import parent_url

DEFAULT_SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a plan depends on beside the recipe and its inputs.

    Memory does not enter the digest; the device does for methods that round differently on each.
    """

    random_seed: int = 0
    shard_bytes: int = DEFAULT_SHARD_BYTES
    memory: MemoryRules = field(default_factory=MemoryRules)
    copy_tokenizer: bool = True
    device: str = "cpu"


@without_collection
def build_plan(
    recipe: Recipe,
    opened: Mapping[ModelReference, Checkpoint],
    options: PlanOptions,
    *,
    known_problems: Iterable[Problem] = (),
    known_warnings: Iterable[Problem] = (),
    tokenizer_donor: Checkpoint | None = None,
    vocabulary: AlignedVocabulary | None = None,
) -> Plan:
    """Plan a merge. `opened` holds every model of the recipe that could be opened.

    Raises PlanError with `known_problems` (of reading the recipe and opening its models) and everything found here.
    """
    problems = Problems()
    for problem in known_problems:
        problems.add(problem)
    method = _method(recipe, problems)
    if method is None:
        raise PlanError(*problems.all())
    warnings = [*known_warnings, *check_names(method, parameter_levels(recipe), all_methods(), problems)]
    layouts = _layouts(recipe, opened)
    opened = layouts.checkpoints
    for problem in layouts.problems:
        problems.add(problem)
    binder = Binder(recipe=recipe, method=method, opened=opened, problems=problems)
    modules = binder.modules()
    ledger = Ledger()
    rules = Rules.of(recipe, method, options.random_seed)
    maker = JobMaker(rules=rules, ledger=ledger, problems=problems, layouts=layouts)
    placed = _place_jobs(modules, maker)
    complete = len(opened) == len(model_references(recipe)) and len(modules) == len(recipe.modules)
    if complete and not problems:
        line = recipe.lines.get("merge_method")
        for problem in survey_problems(method, modules, [job for _, job in placed], line):
            problems.add(problem)
        _drop_bystanders(opened.values(), modules, ledger)
        ledger.record_helpers(opened.values())
        for problem in ledger.unaccounted(opened.values()):
            problems.add(problem)
        if not placed:
            problems.add(Problem(message="the recipe makes no tensor: its models hold none that it names"))
    if problems:
        raise PlanError(*problems.all())
    donor = opened[recipe.base_model] if recipe.base_model is not None else next(iter(opened.values()))
    placed = _ordered(placed, modules)
    jobs = [job for _, job in placed]
    shards = _shards(placed, options, _environment(method, options.device))
    surveyed = surveyed_names(method, jobs)
    complaints = dict.fromkeys(too_small(shard.jobs, shard.memory, options.memory) for shard in shards)
    if any(complaints):
        raise PlanError(*(complaint for complaint in complaints if complaint is not None))
    return Plan(
        digest=shards[0].plan_digest,
        shards=shards,
        ledger=ledger.lines(),
        output_config=_output_config(donor, opened.values(), modules, placed),
        models=tuple(opened.values()),
        base=opened[recipe.base_model] if recipe.base_model is not None else None,
        donor=donor,
        methods=(method.name,),
        layer_count=_layer_count(modules),
        parameters_by_layer=parameter_rows(method, modules),
        warnings=(
            *warnings,
            *binder.doubts.all(),
            *_rounding(maker),
            *_idle_patterns(recipe, [job for _, job in placed]),
            *_doubts(donor, modules),
        ),
        recipe_text=recipe.text,
        chat_template=recipe.chat_template,
        copy_tokenizer=options.copy_tokenizer,
        tokenizer_donor=tokenizer_donor or donor,
        vocabulary=vocabulary,
        summary=plan_summary(
            recipe, opened, options.random_seed, options.shard_bytes, method_sha256=maker.rules.method_sha256
        ),
        surveyed=surveyed,
        survey_passes=survey_passes(method, jobs, surveyed),
    )


def _method(recipe: Recipe, problems: Problems) -> Method | None:
    """The recipe's method; for a misspelt one the likeliest, so that further problems are found, or None."""
    known = all_methods()
    if recipe.merge_method in known:
        found = known[recipe.merge_method]
        if origin_of(found).sha256 is None:
            problems.add(_unknown_code(found, recipe))
        return found
    line = recipe.lines.get("merge_method")
    hint = did_you_mean(recipe.merge_method, known)
    remedy = hint or "raymerge methods lists what there is"
    problems.add(Problem(subject="merge_method", message=f"found {recipe.merge_method}", remedy=remedy, line=line))
    likely = suggest(recipe.merge_method, known)
    return known[likely] if likely is not None else None


def _layouts(recipe: Recipe, opened: Mapping[ModelReference, Checkpoint]) -> Layouts:
    """Models read as the base, else the first one, names things; modules name the tensors that they mean themselves."""
    if any(module.prefix not in ("", WHOLE_MODEL) for module in recipe.modules):
        return Layouts(checkpoints=opened)
    return align_layouts(opened, recipe.base_model)


def _unknown_code(method: Method, recipe: Recipe) -> Problem:
    return Problem(
        subject="merge_method",
        message=f"{method.name} is defined in {origin_of(method).name}, not in a file: no resume could know its code",
        remedy='put it into a file, and name that: --methods FILE, or methods=("FILE",)',
        line=recipe.lines.get("merge_method"),
    )


def _place_jobs(modules: Iterable[BoundModule], maker: JobMaker) -> list[Placed]:
    placed: list[Placed] = []
    made: set[str] = set()
    for module in modules:
        for site in _sites(module, maker):
            if site.output in made:
                maker.problems.add(Problem(subject=site.output, message="two modules make this tensor"))
                continue
            made.add(site.output)
            job = maker.job(site)
            if job is not None:
                placed.append((site.unit, job))
    return placed


def _drop_bystanders(opened: Iterable[Checkpoint], modules: Iterable[BoundModule], ledger: Ledger) -> None:
    """A base that is no source of any slice gives its config and tokenizer, none of its tensors."""
    taking_part = {lane.label for module in modules for group in module.groups for lane in group.lanes}
    for checkpoint in opened:
        if checkpoint.reference not in taking_part:
            for name in checkpoint.tensors:
                ledger.record(checkpoint.reference, name, DROPPED, "in no slice: the base gives config and tokenizer")


def _sites(module: BoundModule, maker: JobMaker) -> Iterator[Site]:
    if module.is_sliced:
        return slice_sites(module.groups, maker.ledger, maker.problems)
    return model_sites(module.groups[0], maker.problems)


def _ordered(placed: list[Placed], modules: Iterable[BoundModule]) -> list[Placed]:
    lanes = [lane for module in modules for group in module.groups for lane in group.lanes]
    stack_order = dict.fromkeys(stack.prefix for lane in lanes for stack in lane.anatomy.stacks)
    ranks: dict[str, int] = {}
    for lane in lanes:
        for file in lane.checkpoint.files:
            ranks.setdefault(file.url, len(ranks))
    return order(placed, list(stack_order), ranks)


def _environment(method: Method, device: str) -> tuple[str, ...]:
    """What bears on the bytes beside plan and inputs: where a method's exp and log run, for those that have some."""
    return (device.partition(":")[0], platform.machine()) if method.device_bound else ()


def _shards(placed: list[Placed], options: PlanOptions, environment: tuple[str, ...]) -> tuple[ShardTask, ...]:
    parts = partition(placed, options.shard_bytes)
    names = file_names(len(parts))
    digest = plan_digest(zip(names, parts, strict=True), environment)
    return tuple(
        ShardTask(file_name=name, jobs=jobs, plan_digest=digest, memory=project(jobs, options.memory))
        for name, jobs in zip(names, parts, strict=True)
    )


def _output_config(
    donor: Checkpoint, opened: Iterable[Checkpoint], modules: Iterable[BoundModule], placed: list[Placed]
) -> dict[str, Any]:
    """The donor's config.json with the layers, the element type and the tied embeddings of the output."""
    config = dict(donor.config)
    for path, kept in _kept_layers(modules):
        config = with_layers(config, path, kept)
    if _has_own_head(donor, opened, placed):
        config = untied(config)
    dtype = _common_dtype(job for _, job in placed)
    return set_dtype(config, dtype) if dtype is not None else config


def _has_own_head(donor: Checkpoint, opened: Iterable[Checkpoint], placed: list[Placed]) -> bool:
    """Whether the output holds a head that loaders would overlook, by the donor's config, for the embedding."""
    heads = [job for _, job in placed if is_head(job.output.name)]
    if not heads or tie_word_embeddings(donor.config) is False:
        return False
    embeddings = [job for _, job in placed if is_embedding(job.output.name)]
    return any(_is_made_apart(head, embeddings) for head in heads) or any(
        tie_word_embeddings(each.config) is False or any(head.output.name not in each.tensors for head in heads)
        for each in opened
    )


def _is_made_apart(head: TensorJob, embeddings: Iterable[TensorJob]) -> bool:
    """Whether a stored head is made of other models than the embedding, or with other settings: no copy of it."""
    alike = [_making(job) for job in embeddings if job.output.shape == head.output.shape]
    return bool(alike) and _making(head) not in alike


def _making(job: TensorJob) -> tuple[object, ...]:
    places = [parent_url(ref.file.url) for ref in job.refs]
    return job.method, places, dict(job.parameters), [dict(each.parameters) for each in job.inputs]


def _kept_layers(modules: Iterable[BoundModule]) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """For each sliced module, where config.json counts its layers, and which old layers the new ones are."""
    for module in modules:
        if module.is_sliced:
            leaders = [group.lanes[0] for group in module.groups]
            kept = tuple(index for lane in leaders for index in range(*(lane.layer_range or (0, 0))))
            yield leaders[0].main_stacks[0].config_path, kept


def _common_dtype(jobs: Iterable[TensorJob]) -> DType | None:
    """The element type that most of the output's bytes have."""
    nbytes: dict[DType, int] = {}
    for job in jobs:
        if job.output.dtype.is_mergeable:
            nbytes[job.output.dtype] = nbytes.get(job.output.dtype, 0) + job.output.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype], default=None)


def _layer_count(modules: Iterable[BoundModule]) -> int:
    """Layers of the output's language model; 0 where names show no stack."""
    count = 0
    for module in modules:
        stacks = module.groups[0].lanes[0].main_stacks
        sliced = sum(group.length for group in module.groups)
        count += sliced if module.is_sliced else max((stack.layer_count for stack in stacks), default=0)
    return count


def _doubts(donor: Checkpoint, modules: Iterable[BoundModule]) -> tuple[Problem, ...]:
    return tuple(doubt for path, kept in _kept_layers(modules) for doubt in layer_doubts(donor.config, path, kept))


def _idle_patterns(recipe: Recipe, jobs: Iterable[TensorJob]) -> tuple[Problem, ...]:
    names = [job.output.name for job in jobs]
    return tuple(
        Problem(
            subject="keep_dtype",
            message=f"{pattern!r} is no part of any tensor's name: it exempts nothing",
            line=recipe.lines.get("keep_dtype"),
        )
        for pattern in recipe.keep_dtype
        if not any(is_kept(name, pattern) for name in names)
    )


def _rounding(maker: JobMaker) -> tuple[Problem, ...]:
    if not maker.rounded_count or maker.rules.dtype is None:
        return ()
    name = maker.rules.dtype.recipe_name
    return (
        Problem(
            subject="dtype",
            message=f"{maker.rounded_count} wider tensors are rounded to {name}, such as {maker.rounded_example}",
            remedy="keep_dtype: [PATTERN] exempts tensors",
        ),
    )
