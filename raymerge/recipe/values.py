"""Readers of the values inside a recipe: numbers and text, settings, layer ranges, model references."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from raymerge.recipe.document import Node, join
from raymerge.recipe.form import ConditionForm, ReferenceForm, read_form
from raymerge.recipe.nouns import Condition, ModelReference, Scalar, Setting
from raymerge.recipe.reference import is_ambiguous, parse_model, parse_reference
from raymerge.recipe.report import Report, describe

# YAML 1.1 reads `1e-5` and every quoted number as text; recipes mean the number.
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 100
_MAX_LAYERS = 1 << 20  # far above any model; keeps a mistyped range from becoming a list of a billion layers
_NOT_FINITE = frozenset(("nan", "inf", "infinity"))


def read_settings(entries: Mapping[str, Node], path: str, report: Report) -> dict[str, Setting]:
    """The settings of a `parameters` mapping; those that are wrong are reported and left out."""
    settings = {}
    for name, node in entries.items():
        setting = read_setting(node, join(path, name), report)
        if setting is not None:
            settings[name] = setting
    return settings


def read_setting(node: Node, path: str, report: Report) -> Setting | None:
    conditional = [node] if isinstance(node.value, Mapping) else node.value
    if isinstance(conditional, (list, tuple)) and any(isinstance(item.value, Mapping) for item in conditional):
        single = isinstance(node.value, Mapping)
        conditions = tuple(
            condition
            for index, item in enumerate(conditional)
            if (condition := _read_condition(item, path if single else f"{path}[{index}]", report)) is not None
        )
        return Setting(value=conditions, line=node.line) if conditions else None
    value = _read_value(node, path, report)
    return None if value is None else Setting(value=value, line=node.line)


def _read_condition(node: Node, path: str, report: Report) -> Condition | None:
    form = read_form(ConditionForm, node, path, report)
    if form is None:
        return None
    if form.value is None:
        report.problem(node, path, "found a condition without a value, expected filter and value")
        return None
    value = _read_value(form.value, join(path, "value"), report)
    return None if value is None else Condition(filter=form.filter, value=value)


def _read_value(node: Node, path: str, report: Report) -> Scalar | tuple[Scalar, ...] | None:
    """A scalar or a gradient."""
    if not isinstance(node.value, tuple):
        return read_scalar(node, path, report)
    entries = [read_scalar(item, f"{path}[{index}]", report) for index, item in enumerate(node.value)]
    present = tuple(entry for entry in entries if entry is not None)
    if len(present) < len(entries):
        return None
    if len({_kind(entry) for entry in present}) > 1:
        report.problem(node, path, "found a list of unlike values, expected all numbers, all text or all truth values")
        return None
    return present


def read_scalar(node: Node, path: str, report: Report) -> Scalar | None:
    """A number, truth value or text; None, with a problem, where there is none or a number is not finite."""
    value = node.value
    if value is None or isinstance(value, (tuple, Mapping)):
        remedy = "give it a value, or drop the key" if value is None else ""
        report.problem(node, path, f"found {describe(node)}, expected a number, a truth value or text", remedy)
        return None
    if isinstance(value, str):
        value = _number_in(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_finite(value):
        report.problem(node, path, f"found {node.text[:40]}, expected a finite number")
        return None
    return value


def read_layer_range(node: Node, path: str, report: Report) -> tuple[int, int] | None:
    expected = "expected [first, end): two layer numbers, the first from 0 and below the end"
    ends: list[int] = []
    for item in node.value if isinstance(node.value, tuple) else ():
        value = _number_in(item.value) if isinstance(item.value, str) else item.value
        if isinstance(value, int) and not isinstance(value, bool):
            ends.append(value)
    if len(ends) == 2 and isinstance(node.value, tuple) and len(node.value) == 2:
        first, end = ends
        if 0 <= first < end <= _MAX_LAYERS:
            return (first, end)
        report.problem(node, path, f"found [{node.value[0].text[:20]}, {node.value[1].text[:20]}], {expected}")
        return None
    report.problem(node, path, f"found {describe(node)}, {expected}")
    return None


def read_reference(node: Node | None, path: str, report: Report) -> ModelReference | None:
    """A model, as text or as a mapping; None where `node` is, or where it is wrong."""
    if node is None:
        return None
    if isinstance(node.value, Mapping):
        return _read_reference_mapping(node, path, report)
    if not isinstance(node.value, str):
        expected = "expected a hub id (org/name), a path or a URL"
        report.problem(node, path, f"found {describe(node)}, {expected}", "put a name that is a number into quotes")
        return None
    try:
        reference = parse_reference(node.value)
    except ValueError as error:
        report.problem(node, path, str(error), 'a path with "+" or "@" in it is written {model: {path: PATH}}')
        return None
    if is_ambiguous(node.value):
        report.warning(
            node,
            path,
            f"{reference.adapter} is read as an adapter of {reference.path}",
            f"if this is one path, write {{model: {{path: {node.value.strip()}}}}}",
        )
    return reference


def _read_reference_mapping(node: Node, path: str, report: Report) -> ModelReference | None:
    form = read_form(ReferenceForm, node, path, report)
    if form is None:
        return None
    if form.override_architecture is not None:
        report.warning(
            form.override_architecture,
            join(path, "override_architecture"),
            "has no effect: the names of the tensors decide, not a table of architectures",
        )
    if form.path is not None:
        return _read_path(form.path, form.revision, join(path, "path"), report)
    if form.model is None:
        report.problem(node, path, f"found {describe(node)}, expected {{model: {{path: PATH}}}}")
        return None
    model = _read_part(form.model, join(path, "model"), report)
    if model is None or form.lora is None:
        return model
    return replace(model, adapter=_read_part(form.lora, join(path, "lora"), report))


def _read_part(node: Node, path: str, report: Report) -> ModelReference | None:
    """`{path, revision}`, or `path[@revision]` as text."""
    if not isinstance(node.value, Mapping):
        return _read_path(node, None, path, report)
    form = read_form(ReferenceForm, node, path, report)
    if form is None:
        return None
    if form.path is None or form.model is not None or form.lora is not None:
        report.problem(node, path, f"found {describe(node)}, expected path and revision")
        return None
    return _read_path(form.path, form.revision, join(path, "path"), report)


def _read_path(node: Node, revision: str | None, path: str, report: Report) -> ModelReference | None:
    if not isinstance(node.value, str) or not node.value.strip() or not node.value.strip().isprintable():
        report.problem(node, path, f"found {describe(node)}, expected a hub id (org/name), a path or a URL")
        return None
    text = node.value.strip()
    if path.endswith("path"):
        return ModelReference(path=text, revision=revision)
    try:
        return parse_model(text)
    except ValueError as error:
        report.problem(node, path, str(error))
        return None


def _number_in(text: str) -> Scalar:
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped):
        if len(stripped) > _MAX_DIGITS:
            return math.nan
        return float(stripped) if any(letter in stripped for letter in ".eE") else int(stripped)
    if stripped.lower().lstrip("+-.") in _NOT_FINITE:
        return math.nan
    return text


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _kind(value: Scalar) -> type:
    if isinstance(value, (bool, str)):
        return type(value)
    return float
