"""Resolving a method's parameters for one tensor: levels, filters, gradients, defaults, and checks of the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymerge.errors import Problem
from raymerge.methods.declaration import Method, Missing, Parameter
from raymerge.recipe.nouns import Setting, Settings
from raymerge.recipe.settings import filters, lookup
from raymerge.recipe.suggest import did_you_mean

Values = Mapping[str, Any]


@dataclass(slots=True)
class Problems:
    """Collects problems once each, with the tensors they were seen on counted."""

    _seen: dict[tuple[str, str], Problem] = field(default_factory=dict)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        self.add_once((problem.subject, problem.message), problem)

    def add_once(self, key: tuple[str, str], problem: Problem) -> None:
        self._seen.setdefault(key, problem)

    def add_for_tensor(self, key: tuple[str, str], problem: Problem) -> None:
        """One problem per `key`, worded for the first tensor; later tensors are only counted."""
        if self._seen.setdefault(key, problem) is problem or key in self._counts:
            self._counts[key] = self._counts.get(key, 0) + 1

    def all(self) -> tuple[Problem, ...]:
        return tuple(self._worded(key, problem) for key, problem in self._seen.items())

    def __bool__(self) -> bool:
        return bool(self._seen)

    def _worded(self, key: tuple[str, str], problem: Problem) -> Problem:
        more = self._counts.get(key, 1) - 1
        if more <= 0:
            return problem
        return Problem(
            message=f"{problem.message} (and {more} more tensors)",
            subject=problem.subject,
            remedy=problem.remedy,
            line=problem.line,
        )


@dataclass(slots=True, kw_only=True)
class ParameterTable:
    """The parameters of one slice or of whole models: `each` holds every input's levels, `shared` the tensor's.

    Levels are ordered from the closest to the farthest. Values are remembered by t and the filters that match a name,
    so that a hundred thousand tensors cost few evaluations.
    """

    method: Method
    shared_levels: tuple[Settings, ...]
    each_levels: tuple[tuple[Settings, ...], ...]
    labels: tuple[str, ...]
    problems: Problems
    doubts: Problems  # worth a warning
    _filters: tuple[str, ...] = ()
    _known: dict[tuple[object, ...], Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        levels = [*self.shared_levels, *(level for each in self.each_levels for level in each)]
        self._filters = tuple(dict.fromkeys(text for level in levels for text in filters(level)))

    def shared(self, tensor: str, t: float) -> Values:
        """Values of the parameters that the tensor has one of, by the output's name."""
        return self._resolve(None, tensor, t)

    def each(self, position: int, tensor: str, t: float) -> Values:
        """Values of the per-input parameters of one input, by that input's tensor name."""
        return self._resolve(position, tensor, t)

    def _resolve(self, position: int | None, tensor: str, t: float) -> Values:
        matching = tuple(text for text in self._filters if text in tensor)
        key = (position, matching, t)
        values = self._known.get(key)
        if values is None:
            levels = self.shared_levels if position is None else self.each_levels[position]
            wanted = [each for each in self.method.parameters if each.per_input == (position is not None)]
            label = "" if position is None else self.labels[position]
            values = {each.name: self._value(each, levels, label, tensor, t) for each in wanted}
            self._known[key] = values
        return values

    def _value(self, parameter: Parameter, levels: tuple[Settings, ...], label: str, tensor: str, t: float) -> Any:
        found = lookup(levels, parameter.name, tensor_name=tensor, t=t)
        if found is None:
            if isinstance(parameter.default, Missing):
                self.problems.add_for_tensor((label, parameter.name), missing_value(parameter, label, tensor))
                return None
            return parameter.default
        value, complaint = check_value(parameter, found)
        line = next((level[parameter.name].line for level in levels if parameter.name in level), None)
        subject = f"{label}: {parameter.name}" if label else parameter.name
        if complaint:
            self.problems.add(Problem(subject=subject, message=complaint, line=line))
        elif parameter.is_share and not 0 <= value <= 1:
            self.doubts.add_once((label, parameter.name), beyond_share(subject, value, line))
        return value


def missing_value(parameter: Parameter, label: str, tensor: str, line: int | None = None) -> Problem:
    """The problem of a required parameter that has no value; `label` names the model, "" for shared parameters."""
    of = f" of {label}" if label else ""
    where = "under the model's parameters" if parameter.per_input else "under the top-level parameters"
    return Problem(
        subject=f"{parameter.name}{of}",
        message=f"required and not set for {tensor}",
        remedy=f"set `{parameter.name}` {where}",
        line=line,
    )


def beyond_share(subject: str, value: float, line: int | None) -> Problem:
    """The warning for a share that does not lie between 0 and 1."""
    return Problem(
        subject=subject,
        message=f"found {value:g}, a share lies between 0 and 1: the same as {min(max(value, 0), 1):g}",
        remedy=f"write {value / 100:g} for {value:g}%" if value >= 2 else "",
        line=line,
    )


def check_value(parameter: Parameter, value: object) -> tuple[Any, str]:
    """The value in the parameter's type, and a complaint ("" if there is none)."""
    if parameter.kind is bool:
        # Recipes that a search wrote have 1.0 and 0.0 for switches.
        is_switch = isinstance(value, int | float) and value in (0, 1)
        return (bool(value), "") if is_switch else (None, f"found {value!r}, expected true or false")
    if parameter.kind is str:
        is_known = not parameter.choices or value in parameter.choices
        return (value, "") if is_known else (None, f"found {value!r}, expected one of {', '.join(parameter.choices)}")
    return _check_number(parameter, value)


def _check_number(parameter: Parameter, value: object) -> tuple[Any, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None, f"found {value!r}, expected a number"
    try:
        number = parameter.kind(value)
    except ValueError:
        return None, f"found {value!r}, expected a number"
    if parameter.kind is int and isinstance(value, float) and value != number:
        return None, f"found {value!r}, expected a whole number"
    if parameter.minimum is not None and number < parameter.minimum:
        return None, f"found {value!r}, expected at least {parameter.minimum:g}"
    if parameter.maximum is not None and number > parameter.maximum:
        return None, f"found {value!r}, expected at most {parameter.maximum:g}"
    return number, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One place of a recipe where parameters stand: `path` as in "models[1].parameters"."""

    path: str
    settings: Settings
    of_source: bool = False


def check_names(
    method: Method, levels: Iterable[Level], known: Mapping[str, Method], problems: Problems
) -> tuple[Problem, ...]:
    """Warnings for parameters that do nothing here; unknown ones are problems."""
    warnings: dict[str, Problem] = {}
    everywhere = {each.name for other in known.values() for each in other.parameters}
    everywhere |= {name for other in known.values() for name in other.accepted_without_effect}
    for level in levels:
        for name, setting in level.settings.items():
            subject = f"{level.path}.{name}"
            declared = method.parameter(name)
            if declared is not None:
                if level.of_source and not declared.per_input:
                    warnings.setdefault(
                        name, _useless(subject, setting, "is one value for the whole tensor: ignored here", "top-level")
                    )
            elif name in method.accepted_without_effect:
                warnings.setdefault(
                    name, _useless(subject, setting, f"has no effect on the result of {method.name}", "")
                )
            elif name in everywhere:
                warnings.setdefault(name, _useless(subject, setting, f"is no parameter of {method.name}: ignored", ""))
            else:
                problems.add(_unknown(subject, setting, name, method, everywhere))
    return tuple(warnings.values())


def _useless(subject: str, setting: Setting, message: str, move_to: str) -> Problem:
    remedy = f"move it to the {move_to} parameters" if move_to else ""
    return Problem(subject=subject, message=message, remedy=remedy, line=setting.line)


def _unknown(subject: str, setting: Setting, name: str, method: Method, everywhere: set[str]) -> Problem:
    own = [parameter.name for parameter in method.parameters]
    hint = did_you_mean(name, own) or did_you_mean(name, sorted(everywhere))
    known = ", ".join(own) or "none"
    return Problem(
        subject=subject,
        message=f"no method has a parameter {name!r}; {method.name} takes {known}",
        remedy=hint,
        line=setting.line,
    )


def values_over_layers(
    levels: Sequence[Settings], parameter: Parameter, tensor: str, ts: Sequence[float]
) -> tuple[Any, ...]:
    """A parameter's value at each layer, as a screen shows it; None where it is not set."""
    default = None if isinstance(parameter.default, Missing) else parameter.default
    values = tuple(lookup(levels, parameter.name, tensor_name=tensor, t=t) for t in ts)
    return tuple(default if value is None else value for value in values)
