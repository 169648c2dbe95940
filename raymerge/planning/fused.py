"""Matrices that one input stores fused and another apart: rows of a fused one are ranges of bytes, and parts can be put
together row by row, so each is read as the other stores it. What is woven together in another way is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import prod

from raymerge.checkpoint.nouns import Checkpoint, Helper, TensorRef, TensorSpec
from raymerge.checkpoint.row_runs import RowRuns, row_runs
from raymerge.checkpoint.steps import GatherRows
from raymerge.errors import Problem

# Parts that lie one after the other in the rows of the fused matrix: Phi-3 and those converted like it; Baichuan.
_ROWS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("q_proj", "k_proj", "v_proj"), ("qkv_proj", "W_pack")),
    (("gate_proj", "up_proj"), ("gate_up_proj",)),
)
_PART = re.compile(r"(.*\.)?(q_proj|k_proj|v_proj|gate_proj|up_proj)(\.(?:weight|bias))")
# All experts in one tensor: [expert, gate rows then up rows, in], [expert, out, in].
_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_WHOLE = re.compile(r"(.*\.)?(qkv_proj|W_pack|gate_up_proj)(\.(?:weight|bias))")
_EXPERTS = re.compile(r"(.*\bexperts\.)(gate_up_proj|down_proj)")

# What tells fused from apart, whichever way round, by the last component before ".weight".
_KINDS: Mapping[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "attention": (
        re.compile(r"(^|\.)(qkv_proj|W_pack|query_key_value|c_attn|Wqkv|wqkv|qkv)(\.weight|\.bias)?$"),
        re.compile(r"(^|\.)(q_proj|k_proj|v_proj|query|key|value|wq|wk|wv)(\.weight|\.bias)$"),
    ),
    "experts": (
        re.compile(r"(^|\.)experts\.[A-Za-z]\w*(\.weight)?$"),
        re.compile(r"(^|\.)experts\.\d+\."),
    ),
    "MLP": (
        re.compile(r"(^|\.)(gate_up_proj|dense_h_to_4h|w12|Wgu)(\.weight|\.bias)?$"),
        re.compile(r"(^|\.)(gate_proj|up_proj|w1|w3)(\.weight|\.bias)$"),
    ),
}
_LAYER = re.compile(r"^.*?(?<![^.])\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """Where a part lies in a fused tensor: `start` elements in, if that has the shape `whole`."""

    fused: str
    start: int
    whole: tuple[int, ...]


def with_views(checkpoint: Checkpoint, lead: Checkpoint) -> Checkpoint:
    """`checkpoint` with the rows of fused matrices as tensors of their own, where the leader has those apart."""
    views: dict[str, TensorRef] = {}
    parts: dict[str, list[str]] = {}
    for name, ref in lead.tensors.items():
        if name in checkpoint.tensors:
            continue
        for slot in _slots(name, ref.spec.shape, checkpoint, lead):
            fused = checkpoint.tensors.get(slot.fused)
            if fused is not None and fused.spec.shape == slot.whole and not fused.steps:
                views[name] = _view(fused, name, ref.spec.shape, slot.start)
                parts.setdefault(slot.fused, []).append(name)
    if not views:
        return checkpoint
    kept = {name: ref for name, ref in checkpoint.tensors.items() if name not in parts}
    helpers = {
        name: Helper(serves=names[0], rule=f"read in {len(names)} parts, as {lead.reference} stores them")
        for name, names in parts.items()
    }
    note = f"{len(parts)} fused tensors are read in parts, such as {next(iter(parts))}"
    return replace(
        checkpoint,
        tensors={**kept, **views},
        helpers={**checkpoint.helpers, **helpers},
        notes=(*checkpoint.notes, note),
    )


def with_joins(checkpoint: Checkpoint, lead: Checkpoint) -> Checkpoint:
    """`checkpoint` with parts put together, where the leader has them in one matrix."""
    joined: dict[str, TensorRef] = {}
    helpers: dict[str, Helper] = {}
    for name, ref in lead.tensors.items():
        if name in checkpoint.tensors:
            continue
        for names in _parts(name, ref.spec.shape):
            parts = [checkpoint.tensors[each] for each in names if each in checkpoint.tensors]
            if len(parts) == len(names) and _fit(parts, ref.spec.shape):
                joined[name] = _join(parts, name, ref.spec.shape)
                rule = f"read as a part of {name}, as {lead.reference} stores it"
                helpers |= dict.fromkeys(names, Helper(serves=name, rule=rule))
    if not joined:
        return checkpoint
    kept = {name: ref for name, ref in checkpoint.tensors.items() if name not in helpers}
    note = f"{len(helpers)} tensors are read as parts of fused ones, such as {next(iter(joined))}"
    return replace(
        checkpoint,
        tensors={**kept, **joined},
        helpers={**checkpoint.helpers, **helpers},
        notes=(*checkpoint.notes, note),
    )


def _parts(name: str, shape: tuple[int, ...]) -> Iterator[list[str]]:
    """What a fused tensor may be made of, in the order of its rows."""
    experts, whole = _EXPERTS.fullmatch(name), _WHOLE.fullmatch(name)
    if experts is not None and len(shape) == 3 and shape[1] != shape[2]:  # as in _expert_slots
        kinds = ("down_proj",) if experts[2] == "down_proj" else ("gate_proj", "up_proj")
        yield [f"{experts[1]}{number}.{kind}.weight" for number in range(shape[0]) for kind in kinds]
    elif whole is not None:
        for parts, fused in _ROWS:
            if whole[2] in fused:
                yield [f"{whole[1] or ''}{part}{whole[3]}" for part in parts]


def _fit(parts: list[TensorRef], shape: tuple[int, ...]) -> bool:
    """Whether the parts, all of one type, are the rows of the whole; a row is what the last dimension counts."""
    rows = 1 if len(shape) == 1 else shape[-1]
    same = {(ref.spec.dtype, ref.spec.shape[1:]) for ref in parts}
    each_of_one_expert = len(shape) < 3 or len({ref.spec.shape for ref in parts}) == 1
    count = sum(ref.spec.element_count for ref in parts)
    width_fits = all(len(ref.spec.shape) == 1 or ref.spec.shape[-1] == rows for ref in parts)
    return len(same) == 1 and each_of_one_expert and width_fits and count == prod(shape)


def _join(parts: list[TensorRef], name: str, shape: tuple[int, ...]) -> TensorRef:
    columns = shape[-1] if len(shape) > 1 else 1
    runs = _consecutive(tuple(ref.spec.shape[0] for ref in parts))
    spec = TensorSpec(name=name, dtype=parts[0].spec.dtype, shape=shape)
    gather = GatherRows(sources=tuple(parts), runs=runs, columns=columns)
    return replace(parts[0], spec=spec, stored=None, steps=(gather,))


@lru_cache(maxsize=64)
def _consecutive(counts: tuple[int, ...]) -> RowRuns:
    """All rows of one source after all of another."""
    import numpy as np

    starts = accumulate(counts, initial=0)
    terms = [(np.arange(start, start + count), np.arange(count)) for start, count in zip(starts, counts, strict=False)]
    return row_runs(sum(counts), terms)


def clashes(checkpoint: Checkpoint, lead: Checkpoint) -> tuple[Problem, ...]:
    """A problem for each kind of matrix that is fused in one of them and apart in the other."""
    own = [name for name in checkpoint.tensors if name not in lead.tensors]
    theirs = [name for name in lead.tensors if name not in checkpoint.tensors]
    found = (_clash(kind, checkpoint, own, lead, theirs) for kind in _KINDS) if own and theirs else ()
    return tuple(problem for problem in found if problem is not None)


def _slots(name: str, shape: tuple[int, ...], held: Checkpoint, lead: Checkpoint) -> Iterator[_Slot]:
    expert, part = _EXPERT.fullmatch(name), _PART.fullmatch(name)
    if expert is not None:
        yield from _expert_slots(expert[1], int(expert[2]), expert[3], shape, held)
    elif part is not None:
        yield from _row_slots(part[1] or "", part[2], part[3], lead)


def _row_slots(prefix: str, part: str, end: str, lead: Checkpoint) -> Iterator[_Slot]:
    for parts, fused in _ROWS:
        if part not in parts:
            continue
        refs = [lead.tensors.get(f"{prefix}{each}{end}") for each in parts]
        shapes = [ref.spec.shape for ref in refs if ref is not None]
        if len(shapes) < len(parts) or len({shape[1:] for shape in shapes}) > 1:
            continue
        width = shapes[0][1] if len(shapes[0]) > 1 else 1
        rows = [shape[0] for shape in shapes]
        start = sum(rows[: parts.index(part)]) * width
        for name in fused:
            yield _Slot(fused=f"{prefix}{name}{end}", start=start, whole=(sum(rows), *shapes[0][1:]))


def _expert_slots(prefix: str, number: int, part: str, shape: tuple[int, ...], held: Checkpoint) -> Iterator[_Slot]:
    fused = prefix + ("down_proj" if part == "down_proj" else "gate_up_proj")
    if fused not in held.tensors or len(shape) != 2:
        return
    rows, width = shape
    many = 1 if part == "down_proj" else 2
    count = held.tensors[fused].spec.shape[0]
    if number < count and many * rows != width:  # else nothing tells it from its transpose, which some models store
        start = (number * many + (part == "up_proj")) * rows * width
        yield _Slot(fused=fused, start=start, whole=(count, many * rows, width))


def _view(fused: TensorRef, name: str, shape: tuple[int, ...], start: int) -> TensorRef:
    spec = TensorSpec(name=name, dtype=fused.spec.dtype, shape=shape)
    return TensorRef(spec=spec, file=fused.file, offset=fused.offset + start * fused.spec.dtype.bits // 8)


def _clash(kind: str, checkpoint: Checkpoint, own: list[str], lead: Checkpoint, theirs: list[str]) -> Problem | None:
    fused, apart = _KINDS[kind]
    for one, other, is_fused in ((own, theirs, True), (theirs, own, False)):
        whole = {_layer(name): name for name in reversed(one) if fused.search(name)}
        parts = {_layer(name): name for name in reversed(other) if apart.search(name)}
        layers = [layer for layer in whole if layer in parts]
        if layers:
            mine, its = (whole, parts) if is_fused else (parts, whole)
            return _refusal(kind, checkpoint, lead, mine[layers[-1]], its[layers[-1]], is_fused=is_fused)
    return None


def _refusal(kind: str, checkpoint: Checkpoint, lead: Checkpoint, own: str, its: str, *, is_fused: bool) -> Problem:
    here, there = ("fused", "apart") if is_fused else ("apart", "fused")
    return Problem(
        subject=checkpoint.reference,
        message=f"has its {kind} {here} ({own}), {lead.reference} {there} ({its})",
        remedy=f"convert one of them, or merge models that store their {kind} alike",
    )


def _layer(name: str) -> str:
    found = _LAYER.match(name)
    return found[0] if found else ""
