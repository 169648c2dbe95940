"""Which output tensors there are, and which tensor of which input each is made of, before methods come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raymerge.checkpoint.config import tie_word_embeddings
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import Problem
from raymerge.planning.ledger import DROPPED, Ledger
from raymerge.planning.parameters import ParameterTable, Problems
from raymerge.planning.stack import HEAD, Anatomy, Place, Stack, is_sensory, layer_name, place

Unit = tuple[str, int]  # what is written together: a layer (its stack's prefix, its index), or ("", position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One input of a group: a checkpoint, its anatomy, and the range of its main stack that the recipe takes."""

    label: str
    checkpoint: Checkpoint
    anatomy: Anatomy
    prefix: str = ""
    layer_range: tuple[int, int] | None = None
    line: int | None = None

    @property
    def main_stacks(self) -> tuple[Stack, ...]:
        """The stacks that `slices` cuts: those of the language model, not of a vision or audio tower."""
        own = tuple(each for each in self.anatomy.stacks if is_under(each.prefix, self.prefix))
        return tuple(each for each in own if not is_sensory(each.prefix)) or own

    @property
    def first_layer(self) -> int:
        return self.layer_range[0] if self.layer_range else 0

    def outside(self) -> Iterator[str]:
        """Names that are in no layer of the main stack, in file order."""
        stack = self.main_stacks[0]
        for name in self.checkpoint.tensors:
            layer = self.anatomy.located.get(name)
            if is_under(name, self.prefix) and (layer is None or layer.stack is not stack):
                yield name


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Inputs that are merged together: one slice, or whole models. `base` stands apart where the method keeps it so.

    `leader_at` is the place of the recipe's base among the inputs of a method that has no base of its own.
    """

    inputs: tuple[Lane, ...]
    base: Lane | None
    table: ParameterTable
    prefix: str = ""
    leader_at: int = 0

    @property
    def leader(self) -> Lane:
        """The lane whose order, names and element types the output takes: the base's, else the first input's."""
        return self.base if self.base is not None else self.inputs[self.leader_at]

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Every lane, the leader first."""
        others = (lane for lane in self.inputs if lane is not self.leader)
        return (self.leader, *others)

    @property
    def length(self) -> int:
        first, end = self.inputs[0].layer_range or (0, 0)
        return end - first


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One output tensor: its name, its t on the gradient, and the name it has in each lane."""

    output: str
    t: float
    group: Group
    unit: Unit
    base_name: str
    input_names: tuple[str, ...]


def model_sites(group: Group, problems: Problems) -> Iterator[Site]:
    """Every tensor of whole models, names in the leading lane's order, then what only later lanes have."""
    if _layer_counts_differ(group, problems):
        return
    leader = group.lanes[0]
    names = dict.fromkeys(
        name for lane in group.lanes for name in lane.checkpoint.tensors if is_under(name, group.prefix)
    )
    for position, name in enumerate(names):
        layer = leader.anatomy.located.get(name)
        t = 0.0 if layer is None or layer.is_extra else gradient_position(layer.index, layer.stack.layer_count)
        unit = (layer.stack.prefix, layer.index) if layer is not None else ("", _outside_order(name, position))
        yield Site(
            output=name,
            t=t,
            group=group,
            unit=unit,
            base_name=name,
            input_names=(name,) * len(group.inputs),
        )


def slice_sites(groups: Sequence[Group], ledger: Ledger, problems: Problems) -> Iterator[Site]:
    """Every tensor of stacked slices: layers renumbered, what stands before and after from the first and last slice."""
    stacks = [_main_stack(lane, problems) for group in groups for lane in group.lanes]
    if any(stack is None for stack in stacks) or _shapes_clash(groups, problems) or _ends_clash(groups, problems):
        return
    out_stack = groups[0].lanes[0].main_stacks[0]
    yield from _outside_sites(groups, ledger, problems)
    out_index = 0
    for group in groups:
        for offset in range(group.length):
            yield from _layer_sites(group, out_stack, out_index, offset)
            out_index += 1
    _drop_unused_layers(groups, ledger)


def gradient_position(index: int, count: int) -> float:
    """Where the i-th of n layers stands on a gradient: i/(n-1), and 1 for a single layer."""
    return index / (count - 1) if count > 1 else 1.0


def _layer_sites(group: Group, out_stack: Stack, out_index: int, offset: int) -> Iterator[Site]:
    t = gradient_position(offset, group.length)
    layers = {id(lane): (lane.main_stacks[0].prefix, lane.first_layer + offset) for lane in group.lanes}
    heads = {key: layer_name(prefix, index) for key, (prefix, index) in layers.items()}
    suffixes = dict.fromkeys(suffix for lane in group.lanes for suffix in lane.anatomy.suffixes[layers[id(lane)]])
    for suffix in suffixes:
        yield Site(
            output=layer_name(out_stack.prefix, out_index) + suffix,
            t=t,
            group=group,
            unit=(out_stack.prefix, out_index),
            base_name=heads[id(group.base)] + suffix if group.base is not None else "",
            input_names=tuple(heads[id(lane)] + suffix for lane in group.inputs),
        )


def _outside_sites(groups: Sequence[Group], ledger: Ledger, problems: Problems) -> Iterator[Site]:
    first, last = groups[0], groups[-1]
    same = _agree(first, last)
    names = dict.fromkeys(name for group in (first, last) for lane in group.lanes for name in lane.outside())
    for position, name in enumerate(names):
        where = Place.BEFORE if name in first.lanes[0].anatomy.located else place(name)
        if where is Place.UNKNOWN and not same:
            problems.add(
                Problem(
                    subject=name,
                    message="stands outside the layers, and whether before or after them is not known",
                    remedy="make the first and the last slice use the same models, or use `modules`",
                )
            )
            continue
        group = last if where is Place.AFTER else first
        if not any(name in lane.checkpoint.tensors for lane in group.lanes) and not _ties_head(name, group):
            problems.add(_lacking_end(name, where, group))
            continue
        rule = f"outside the layers: taken from the {'last' if group is last else 'first'} slice"
        _drop_outside(name, groups, group, ledger, rule)
        order = position + (1_000_000 if where is Place.AFTER else -1_000_000)
        yield Site(
            output=name,
            t=0.0,
            group=group,
            unit=("", order),
            base_name=name,
            input_names=(name,) * len(group.inputs),
        )
    for group in groups[1:-1]:
        for lane in group.lanes:
            for name in lane.outside():
                ledger.record(lane.label, name, DROPPED, "outside the layers: only the first and last slice give these")


def _lacking_end(name: str, where: Place, group: Group) -> Problem:
    """The other end of the stack has the tensor, but its value belongs to other layers."""
    end = "last" if where is Place.AFTER else "first"
    models = ", ".join(lane.label for lane in group.lanes)
    return Problem(
        subject=name,
        message=f"stands {where.value} the layers, but the {end} slice's {models} lacks it",
        remedy=f"let a model that has it give the {end} slice",
    )


def _ties_head(name: str, group: Group) -> bool:
    """Whether a tensor is the head of models that share it with their embedding, which they lend then."""
    return HEAD.search(name) is not None and all(
        tie_word_embeddings(lane.checkpoint.config) is not False for lane in group.lanes
    )


def _drop_outside(name: str, groups: Sequence[Group], taken: Group, ledger: Ledger, rule: str) -> None:
    for group in groups:
        if group is not taken:
            for lane in group.lanes:
                if name in lane.checkpoint.tensors:
                    ledger.record(lane.label, name, DROPPED, rule)


def _drop_unused_layers(groups: Sequence[Group], ledger: Ledger) -> None:
    used: dict[str, set[int]] = {}
    lanes = {lane.label: lane for group in groups for lane in group.lanes}
    for group in groups:
        for lane in group.lanes:
            used.setdefault(lane.label, set()).update(range(*(lane.layer_range or (0, 0))))
    for label, lane in lanes.items():
        stack = lane.main_stacks[0]
        for name, layer in lane.anatomy.located.items():
            if layer.stack is not stack:
                continue
            if layer.is_extra:
                ledger.record(label, name, DROPPED, "extra layer after the stack: slices cut the stack alone")
            elif layer.index not in used[label]:
                ledger.record(label, name, DROPPED, "layer in no slice")


def _agree(first: Group, last: Group) -> bool:
    """Whether both groups give a tensor outside the layers the same value: same models, same settings."""
    if first is last:
        return True
    same_models = [lane.label for lane in first.lanes] == [lane.label for lane in last.lanes]
    return same_models and _values(first) == _values(last)


def _values(group: Group) -> list[list[dict[str, object]]]:
    """The settings of a group by level, wherever in the recipe they stand."""
    levels = (group.table.shared_levels, *group.table.each_levels)
    return [[{name: setting.value for name, setting in level.items()} for level in each] for each in levels]


def _main_stack(lane: Lane, problems: Problems) -> Stack | None:
    """The one stack that slices cut, its length checked against the lane's range; None with a problem noted."""
    stacks = lane.main_stacks
    if len(stacks) != 1:
        found = ", ".join(stack.prefix for stack in stacks) or "none"
        remedy = "name each stack under `modules`" if stacks else "merge whole models with `models`"
        problems.add(
            Problem(
                subject=lane.label,
                message=f"slices need one stack of numbered layers, found {found}",
                remedy=remedy,
                line=lane.line,
            )
        )
        return None
    first, end = lane.layer_range or (0, 0)
    if end > stacks[0].layer_count:
        problems.add(
            Problem(
                subject=f"layer_range of {lane.label}",
                message=f"found [{first}, {end}], but the model has {stacks[0].layer_count} layers",
                remedy=f"the end is exclusive and at most {stacks[0].layer_count}",
                line=lane.line,
            )
        )
        return None
    return stacks[0]


def _layer_counts_differ(group: Group, problems: Problems) -> bool:
    counts: dict[str, dict[int, str]] = {}
    for lane in group.lanes:
        for stack in lane.main_stacks:
            counts.setdefault(stack.prefix, {}).setdefault(stack.layer_count, lane.label)
    for prefix, labels in counts.items():
        if len(labels) > 1:
            found = ", ".join(f"{label} has {count}" for count, label in labels.items())
            problems.add(
                Problem(
                    subject=prefix,
                    message=f"the models differ in their number of layers: {found}",
                    remedy="choose layers of each with `slices`",
                )
            )
            return True
    return False


def _shapes_clash(groups: Sequence[Group], problems: Problems) -> bool:
    """Whether slices stack layers that cannot follow each other: of one shape in one model, of another in the next."""
    seen: dict[str, tuple[tuple[int, ...], str]] = {}
    for lane in {lane.label: lane for group in groups for lane in group.lanes}.values():
        for suffix, shape in _uniform_shapes(lane).items():
            known = seen.setdefault(suffix, (shape, lane.label))
            if known[0] != shape:
                problems.add(
                    Problem(
                        subject=suffix,
                        message=f"{lane.label} has shape {shape} in every layer, {known[1]} has {known[0]}",
                        remedy="slices can only stack layers of one width",
                    )
                )
                return True
    return False


def _ends_clash(groups: Sequence[Group], problems: Problems) -> bool:
    """Whether the ends of the output come from models that name things differently: it would have two embeddings."""
    first, last = groups[0].leader, groups[-1].leader
    names = [lane.main_stacks[0].prefix for lane in (first, last)]
    if names[0] == names[1]:
        return False
    problems.add(
        Problem(
            subject=last.label,
            message=f"names its layers {names[1]}.N, {first.label} {names[0]}.N: so do the others differ",
            remedy="let the first and the last slice come from models that name their tensors alike",
            line=last.line,
        )
    )
    return True


def _uniform_shapes(lane: Lane) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name, layer in lane.anatomy.located.items():
        if layer.stack is lane.main_stacks[0] and not layer.is_extra:
            shapes.setdefault(layer.suffix, set()).add(lane.checkpoint.tensors[name].spec.shape)
    return {suffix: next(iter(found)) for suffix, found in shapes.items() if len(found) == 1}


def _outside_order(name: str, position: int) -> int:
    """Writes what stands after the layers after them; ties keep file order."""
    return position + (1_000_000 if place(name) is Place.AFTER else -1_000_000)


def is_under(name: str, prefix: str) -> bool:
    """Whether a tensor belongs to the module of that prefix; the empty prefix is the whole model."""
    return not prefix or name == prefix or name.startswith(prefix.rstrip(".") + ".")
