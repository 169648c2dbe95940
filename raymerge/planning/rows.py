"""Effective parameters over the output's layers, as the plan's screen shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from raymerge.methods.declaration import Method, Parameter
from raymerge.planning.binding import BoundModule
from raymerge.planning.nouns import ParameterRow
from raymerge.planning.parameters import values_over_layers
from raymerge.planning.sites import Group, gradient_position
from raymerge.recipe.nouns import Settings
from raymerge.recipe.settings import filters

EVERYTHING_ELSE = ""


def parameter_rows(method: Method, modules: Iterable[BoundModule]) -> tuple[ParameterRow, ...]:
    """A row for every parameter, input and filter; a filter's row shows the tensors whose name contains it."""
    return tuple(row for module in modules for row in _module_rows(method, module))


def _module_rows(method: Method, module: BoundModule) -> Iterator[ParameterRow]:
    for parameter in method.parameters:
        width = max(len(group.inputs) for group in module.groups) if parameter.per_input else 1
        for position in range(width):
            yield from _rows(parameter, position, module.groups)


def _rows(parameter: Parameter, position: int, groups: Sequence[Group]) -> Iterator[ParameterRow]:
    levels = [_levels(parameter, position, group) for group in groups]
    subjects = dict.fromkeys(
        text
        for of_group in levels
        for level in of_group
        if parameter.name in level
        for text in filters({parameter.name: level[parameter.name]})
    )
    labels = dict.fromkeys(group.table.labels[position] for group in groups if position < len(group.table.labels))
    model = " / ".join(labels) if parameter.per_input else ""
    for subject in (*subjects, EVERYTHING_ELSE):
        values: list[Any] = []
        for group, of_group in zip(groups, levels, strict=True):
            values.extend(values_over_layers(of_group, parameter, subject, _positions(group)))
        shown = tuple(values[:1]) if len(set(values)) == 1 else tuple(values)
        yield ParameterRow(name=parameter.name, subject=subject, model=model, values=shown)


def _levels(parameter: Parameter, position: int, group: Group) -> tuple[Settings, ...]:
    if not parameter.per_input:
        return group.table.shared_levels
    return group.table.each_levels[position] if position < len(group.table.each_levels) else ()


def _positions(group: Group) -> list[float]:
    stacks = group.inputs[0].main_stacks
    count = group.length or (stacks[0].layer_count if stacks else 1)
    return [gradient_position(index, count) for index in range(count)]
