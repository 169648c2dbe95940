"""What a merge will do, before it does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from string import ascii_uppercase
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.cli.screens.problems import warning_list
from raymerge.cli.screens.text import duration, element_count, grid, plural, value
from raymerge.cli.screens.vocabulary import vocabulary_table, vocabulary_values
from raymerge.planning.copies import Movement
from raymerge.planning.nouns import LedgerLine, ParameterRow, Plan, ShardTask
from raymerge.sizes import format_size

_SHOWN_LAYERS = 5
_SHOWN_TENSORS = 3
# What one process without a fast store reads; a round figure for "will this take minutes or hours".
_ASSUMED_BYTES_PER_SECOND = 100e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the plan's screen says beside the plan: `seconds` planning took, free bytes at `out`, what resume finds.

    `out` is "" where no output was named; `movement` is given where it is in an object store; `free_bytes` and
    `host_bytes` are None where nobody can say.
    """

    seconds: float
    out: str = ""
    free_bytes: int | None = None
    host_bytes: int | None = None
    task_count: int = 1
    resume: str = ""
    movement: Movement | None = None


def plan_screen(plan: Plan, around: Surroundings) -> RenderableType:
    blank = Text("")
    parts: list[RenderableType] = [_title(plan, around), _models(plan)]
    if plan.parameters_by_layer:
        parts += [blank, _parameters(plan)]
    parts += [blank, _figures(plan, around)]
    if plan.vocabulary is not None:
        parts += [blank, vocabulary_table(plan.vocabulary, letters(plan))]
    dropped = dropped_lines(plan.ledger, letters(plan))
    if dropped:
        parts += [blank, *(Text(line) for line in dropped)]
    notes = [note for model in plan.models for note in model.notes]
    if notes or plan.warnings:
        parts += [blank, *(Text(f"note     {note}") for note in notes), warning_list(plan.warnings)]
    return Group(parts[0], Padding(Group(*parts[1:]), (0, 0, 0, 2)))


def _title(plan: Plan, around: Surroundings) -> RenderableType:
    elements = sum(job.output.element_count for shard in plan.shards for job in shard.jobs)
    dtypes = sorted({job.output.dtype.recipe_name for shard in plan.shards for job in shard.jobs})
    methods = " + ".join(plan.methods) or "copy"
    left = f"{methods}, {plural(len(plan.models), 'model')}, {plural(plan.layer_count, 'layer')}"
    row = Table.grid(expand=True)
    row.add_column(ratio=1, overflow="fold")
    row.add_column(justify="right", no_wrap=True)
    row.add_row(
        Text(f"{left} -> {element_count(elements)} parameters, {', '.join(dtypes)}", style="bold"),
        Text(f"  plan {plan.digest[:8]}   {duration(around.seconds)}", style="dim"),
    )
    return row


def letters(plan: Plan) -> dict[str, str]:
    """A short name for each model: A, B, ... in recipe order; numbers from the 27th on."""
    names = (ascii_uppercase[i] if i < len(ascii_uppercase) else str(i + 1) for i in range(len(plan.models)))
    return dict(zip((model.reference for model in plan.models), names, strict=True))


def _models(plan: Plan) -> RenderableType:
    table = grid({"no_wrap": True}, {"overflow": "fold"}, {"justify": "right", "no_wrap": True}, {"no_wrap": True})
    for model, letter in zip(plan.models, letters(plan).values(), strict=True):
        is_base = plan.base is not None and model.reference == plan.base.reference
        table.add_row(
            f"{letter} (base)" if is_base else letter, _identity(model), format_size(model.nbytes), model.origin
        )
    return table


def _identity(model: Checkpoint) -> Text:
    if model.adapter is None:
        return Text(_pinned(model, model.reference))
    base = model.reference.removesuffix(f"+{model.adapter.reference}")
    return Text(f"{_pinned(model, base)}+{_pinned(model.adapter, model.adapter.reference)}")


def _pinned(part: Checkpoint, reference: str) -> str:
    return f"{reference}@{part.commit[:7]}" if part.commit and "@" not in reference else reference


def _parameters(plan: Plan) -> RenderableType:
    """Effective values: at a few layers where they change with depth, else once, models side by side."""
    names = letters(plan)
    layered = {row.name for row in plan.parameters_by_layer if len(row.values) > 1}
    parts: list[RenderableType] = []
    if layered:
        parts.append(_layer_table([row for row in plan.parameters_by_layer if row.name in layered], plan, names))
    constant: dict[str, list[str]] = {}
    for row in plan.parameters_by_layer:
        if row.name not in layered:
            constant.setdefault(row.name, []).append(_constant(row, names))
    if constant:
        table = grid({"style": "dim", "no_wrap": True}, {"overflow": "fold"})
        per_model = {row.name for row in plan.parameters_by_layer if row.model}
        for name in (name for name in constant if name in per_model):
            table.add_row(name, Text(", ".join(constant[name])))
        shared = [f"{name} {each}" for name, values in constant.items() if name not in per_model for each in values]
        if shared:
            table.add_row("shared", Text(", ".join(shared)))
        parts.append(table)
    return Group(*parts)


def _constant(row: ParameterRow, names: Mapping[str, str]) -> str:
    of = " ".join(part for part in (names.get(row.model, row.model), _filter(row)) if part)
    return f"{of} {value(row.values[0])}".strip() if row.values else of


def _layer_table(rows: Sequence[ParameterRow], plan: Plan, names: Mapping[str, str]) -> RenderableType:
    shown = sample_layers(plan.layer_count)
    table = grid({"overflow": "fold"}, *({"justify": "right", "no_wrap": True} for _ in shown))
    table.add_row(Text("layer", style="dim"), *(Text(str(layer), style="dim") for layer in shown))
    for row in rows:
        of = names.get(row.model, row.model)
        name = "  ".join(part for part in (row.name, of, _filter(row) or "everything else") if part)
        at = row.values if len(row.values) > 1 else row.values * plan.layer_count
        table.add_row(Text(name), *(value(at[layer]) if layer < len(at) else "" for layer in shown))
    return table


def _filter(row: ParameterRow) -> str:
    return f"*{row.subject}*" if row.subject else ""


def sample_layers(layer_count: int) -> tuple[int, ...]:
    """Up to five layers, spread evenly from the first to the last."""
    if layer_count <= _SHOWN_LAYERS:
        return tuple(range(layer_count))
    return tuple(i * (layer_count - 1) // (_SHOWN_LAYERS - 1) for i in range(_SHOWN_LAYERS))


def _figures(plan: Plan, around: Surroundings) -> RenderableType:
    counts = fate_counts(plan.ledger)
    label = {"no_wrap": True, "style": "dim"}
    table = grid(label, {"overflow": "fold"}, label, {"overflow": "fold"})
    tensors = f"{counts['merged']:,} merged, {counts['copied']:,} copied, {counts['dropped']:,} dropped"
    shards = f"{plural(len(plan.shards), 'shard')}, {format_size(plan.output_bytes)}"
    table.add_row("tensors", tensors, "output", Text(f"{around.out}  {shards}" if around.out else shards))
    table.add_row("memory", _memory(plan, around), "disk", _disk(plan, around))
    moved = around.movement
    reads = (moved.read_bytes if moved is not None else plan.read_bytes) + plan.survey_bytes
    minutes = duration(reads / _ASSUMED_BYTES_PER_SECOND)
    table.add_row("resume", around.resume or "-", "reads", f"{format_size(reads)}, {minutes} at 100 MB/s")
    if moved is not None and moved.copied_bytes:
        table.add_row("copies", _copies(moved), "writes", format_size(moved.written_bytes))
    if plan.survey_bytes:
        surveyed = (
            f"{plural(len(plan.surveyed), 'tensor')} read {plural(plan.survey_passes, 'time')} before any is merged"
        )
        table.add_row("survey", surveyed, "", "")
    return table


def _copies(moved: Movement) -> str:
    """Shares are rounded down: what is not all is not called all."""
    percent = moved.copied_bytes * 10_000 // moved.output_bytes / 100
    return f"{format_size(moved.copied_bytes)} inside the store ({percent:.2f}%)"


def fate_counts(ledger: Iterable[LedgerLine]) -> dict[str, int]:
    """Tensors of inputs by fate: every one of them is in exactly one."""
    counts = {"merged": 0, "copied": 0, "dropped": 0}
    for line in ledger:
        counts[line.fate] = counts.get(line.fate, 0) + len(line.tensors)
    return counts


def _memory(plan: Plan, around: Surroundings) -> str:
    peak = max((shard.projected_bytes for shard in plan.shards), default=0)
    host = f" of {format_size(around.host_bytes)}" if around.host_bytes else ""
    return f"{format_size(peak)} x {plural(around.task_count, 'task')}{host}"


def _disk(plan: Plan, around: Surroundings) -> str:
    needed = f"{format_size(plan.output_bytes)} needed"
    return f"{needed}, {format_size(around.free_bytes)} free" if around.free_bytes is not None else needed


def dropped_lines(ledger: Iterable[LedgerLine], names: Mapping[str, str]) -> list[str]:
    """One line for each rule that dropped tensors of a model, with the first few names."""
    lines = []
    for line in ledger:
        if line.fate == "dropped" and line.tensors:
            more = len(line.tensors) - _SHOWN_TENSORS
            listed = ", ".join(line.tensors[:_SHOWN_TENSORS]) + (f", {more:,} more" if more > 0 else "")
            model = names.get(line.model, line.model)
            lines.append(f"dropped  {len(line.tensors):,} of {model}: {line.rule} ({listed})")
    return lines


def plan_values(plan: Plan, around: Surroundings) -> dict[str, Any]:
    """The plan as JSON values: everything that the screen shows, and the shards one by one."""
    return {
        "digest": plan.digest,
        "seconds": round(around.seconds, 3),
        "methods": list(plan.methods),
        "layer_count": plan.layer_count,
        "tensor_count": plan.tensor_count,
        "read_bytes": plan.read_bytes,
        "survey_bytes": plan.survey_bytes,
        "output_bytes": plan.output_bytes,
        "movement": _movement_values(around.movement),
        "free_bytes": around.free_bytes,
        "resume": around.resume,
        "base": plan.base.reference if plan.base else None,
        "donor": plan.donor.reference,
        "models": [_model_values(model) for model in plan.models],
        "parameters": [asdict(row) for row in plan.parameters_by_layer],
        "vocabulary": vocabulary_values(plan.vocabulary),
        "ledger": [asdict(line) for line in plan.ledger],
        "shards": [_shard_values(shard) for shard in plan.shards],
        "warnings": [asdict(problem) for problem in plan.warnings],
        "output_config": dict(plan.output_config),
    }


def _movement_values(moved: Movement | None) -> dict[str, int | float] | None:
    if moved is None:
        return None
    return {
        "copied_bytes": moved.copied_bytes,
        "copied_share": moved.copied_share,
        "read_bytes": moved.read_bytes,
        "written_bytes": moved.written_bytes,
    }


def _model_values(model: Checkpoint) -> dict[str, Any]:
    return {
        "reference": model.reference,
        "url": model.url,
        "origin": model.origin,
        "hub_id": model.hub_id,
        "commit": model.commit,
        "nbytes": model.nbytes,
        "tensor_count": len(model.tensors),
        "notes": list(model.notes),
    }


def _shard_values(shard: ShardTask) -> dict[str, Any]:
    return {
        "file_name": shard.file_name,
        "tensor_count": len(shard.jobs),
        "tensor_bytes": shard.tensor_bytes,
        "read_bytes": shard.read_bytes,
        "projected_bytes": shard.projected_bytes,
        "memory": asdict(shard.memory),
    }
