"""Merge methods as a table, one of them in full, and a recipe that uses it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from raymerge.cli.screens.text import grid, value
from raymerge.methods.declaration import REQUIRED, Base, Method, Parameter
from raymerge.methods.extension import origin_of

_BASE = {Base.INPUT: "no", Base.REQUIRED: "yes", Base.OPTIONAL: "optional", Base.FIRST: "first"}

# Small public checkpoints of one shape: base, two fine-tunes and a fine-tune of a fine-tune, 24 layers each.
EXAMPLE_BASE = "Qwen/Qwen2.5-0.5B"
EXAMPLE_MODELS = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-Coder-0.5B", "Qwen/Qwen2.5-Coder-0.5B-Instruct")
EXAMPLE_LAYERS = ((0, 16), (8, 24))


def method_table(methods: Iterable[Method]) -> RenderableType:
    table = grid(
        {"header": "method", "no_wrap": True, "style": "bold"},
        {"header": "models", "no_wrap": True},
        {"header": "base", "no_wrap": True},
        {"header": "parameters (default)", "overflow": "fold", "ratio": 3},
        {"header": "what it does", "overflow": "fold", "ratio": 3},
    )
    table.show_header = True
    table.header_style = "dim"
    table.expand = True
    for method in methods:
        parameters = ", ".join(_brief(parameter) for parameter in method.parameters) or "-"
        table.add_row(method.name, input_count(method), _BASE[method.base], parameters, method.summary)
    return table


def input_count(method: Method) -> str:
    """How many models a method takes, the base not counted where it stands apart: "1+", "2", "2-4"."""
    if method.max_inputs is None:
        return f"{method.min_inputs}+"
    return (
        str(method.min_inputs) if method.min_inputs == method.max_inputs else f"{method.min_inputs}-{method.max_inputs}"
    )


def _brief(parameter: Parameter) -> str:
    return parameter.name if parameter.default is REQUIRED else f"{parameter.name} ({_default(parameter)})"


def _default(parameter: Parameter) -> str:
    if parameter.default is REQUIRED:
        return "required"
    return "none" if parameter.default is None else value(parameter.default)


def method_page(method: Method) -> RenderableType:
    table = grid({"style": "bold", "no_wrap": True}, {"no_wrap": True}, {"no_wrap": True}, {"overflow": "fold"})
    for parameter in method.parameters:
        scope = "per model" if parameter.per_input else "shared"
        table.add_row(parameter.name, scope, _default(parameter), parameter.help + _range(parameter))
    for name in method.accepted_without_effect:
        table.add_row(name, "", "", "accepted, no effect")
    facts = grid({"style": "dim", "no_wrap": True}, {"overflow": "fold"})
    facts.add_row("models", Text(f"{input_count(method)}   base: {method.base.value}"))
    facts.add_row("formula", Text(method.formula))
    facts.add_row("source", Text(method.source))
    origin = origin_of(method)
    if origin.sha256 != "":
        facts.add_row("code", Text(origin.name))
    file = f" --methods {shlex.quote(origin.source.name)}" if origin.source is not None else ""
    facts.add_row("recipe", Text(f"raymerge methods {method.name} --example{file} > config.yaml"))
    blank = Text("")
    return Group(Text(f"{method.name}: {method.summary}"), blank, *((table, blank) if method.parameters else ()), facts)


def _range(parameter: Parameter) -> str:
    if parameter.choices:
        return f" ({' | '.join(parameter.choices)})"
    if parameter.is_share:
        return " (0 to 1)"
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        return f" ({low:g} to {high:g})"
    if low is not None:
        return f" (at least {low:g})"
    return f" (at most {high:g})" if high is not None else ""


def example_recipe(method: Method, *, base: str = EXAMPLE_BASE, models: Sequence[str] = EXAMPLE_MODELS) -> str:
    """A recipe for `method` as YAML text, with the parameters that its declaration gives as an example.

    A method that takes one model gets two overlapping layer ranges of it.
    """
    per_input = [name for name in method.example if _is_per_input(method, name)]
    shared = {name: setting for name, setting in method.example.items() if name not in per_input}
    lines = [f"# {method.name}: {method.summary}", f"# raymerge merge config.yaml merged    ({method.source})"]
    lines.append(f"merge_method: {method.name}")
    if method.base in {Base.REQUIRED, Base.FIRST}:
        lines.append(f"base_model: {base}")
    inputs = _inputs(method, base, models)
    settings = [{name: _entry(method.example[name], i) for name in per_input} for i in range(len(inputs))]
    if method.max_inputs == 1 and method.base is Base.INPUT:
        lines += _slices(inputs[0], settings[0])
    else:
        lines.append("models:")
        for model, setting in zip(inputs, settings, strict=True):
            lines += [f"  - model: {model}", *_parameters(setting, "    ")]
    return "\n".join([*lines, *_parameters(shared, ""), "dtype: bfloat16", ""])


def _is_per_input(method: Method, name: str) -> bool:
    parameter = method.parameter(name)
    return parameter is not None and parameter.per_input


def _inputs(method: Method, base: str, models: Sequence[str]) -> tuple[str, ...]:
    """As many models as the example has entries for, within what the method takes."""
    given = [len(setting) for setting in method.example.values() if isinstance(setting, (list, tuple))]
    count = max([*given, method.min_inputs, min(2, method.max_inputs or 2)])
    if method.base is Base.FIRST:
        return (base, *models)[:count]
    return tuple(models[:count])


def _entry(setting: Any, index: int) -> Any:
    return setting[min(index, len(setting) - 1)] if isinstance(setting, (list, tuple)) else setting


def _slices(model: str, settings: Mapping[str, Any]) -> list[str]:
    lines = ["slices:"]
    for first, end in EXAMPLE_LAYERS:
        lines += ["  - sources:", f"      - model: {model}", f"        layer_range: [{first}, {end}]"]
        lines += _parameters(settings, "        ")
    return lines


def _parameters(settings: Mapping[str, Any], indent: str) -> list[str]:
    if not settings:
        return []
    return [f"{indent}parameters:", *(f"{indent}  {name}: {_yaml(setting)}" for name, setting in settings.items())]


def _yaml(setting: Any) -> str:
    """A number, flag, word, or list of them in YAML's flow style."""
    if isinstance(setting, (list, tuple)):
        return f"[{', '.join(_yaml(each) for each in setting)}]"
    return "null" if setting is None else value(setting)
