"""Readers of `tokenizer_source` and `tokenizer`: the form alone; what a vocabulary holds is not known here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raymerge.recipe.document import Node, join, plain
from raymerge.recipe.form import TokenForm, TokenizerForm, TokenSourceForm, read_form
from raymerge.recipe.report import Report, describe
from raymerge.recipe.suggest import did_you_mean
from raymerge.recipe.values import read_reference

_OLD_PREFIX = "model:"  # `tokenizer_source: model:org/name`, as early recipes wrote it
_KINDS = ("model_token", "zero")


def read_tokenizer(
    source: Node | None, mapping: Node | None, report: Report
) -> tuple[str | None, Mapping[str, Any] | None]:
    """`tokenizer_source` and `tokenizer`, at most one of them set; a wrong mapping is reported and left out."""
    if mapping is not None and source is not None:
        message = "found beside tokenizer, expected one of the two"
        report.problem(source, "tokenizer_source", message, "move it to tokenizer.source")
        source = None
    if mapping is not None and not isinstance(mapping.value, Mapping):
        remedy = "the short form is `tokenizer_source: union`"
        report.problem(mapping, "tokenizer", f"found {describe(mapping)}, expected a mapping with source", remedy)
        return (_read_source(mapping, "tokenizer", report) if isinstance(mapping.value, str) else None), None
    before = len(report.problems)
    if mapping is not None:
        _check_mapping(mapping, report)
        return None, (plain(mapping) if len(report.problems) == before else None)
    return _read_source(source, "tokenizer_source", report), None


def _check_mapping(node: Node, report: Report) -> None:
    form = read_form(TokenizerForm, node, "tokenizer", report)
    if form is None:
        return
    _read_source(form.source, "tokenizer.source", report)
    for token, rule in form.tokens.items():
        _check_token(rule, join("tokenizer.tokens", token), report)


def _check_token(node: Node, path: str, report: Report) -> None:
    form = read_form(TokenForm, node, path, report)
    if form is None:
        return
    source = form.source
    if source is None:
        report.problem(node, path, "found no source, expected a model, {kind: model_token, ...} or {kind: zero}")
    elif isinstance(source.value, Mapping) and "kind" in source.value:
        _check_token_source(source, join(path, "source"), report)
    else:
        read_reference(source, join(path, "source"), report)


def _check_token_source(node: Node, path: str, report: Report) -> None:
    form = read_form(TokenSourceForm, node, path, report)
    if form is None:
        return
    if form.kind not in _KINDS:
        message = f"found {form.kind[:80]!r}, expected model_token or zero"
        report.problem(node, join(path, "kind"), message, did_you_mean(form.kind, _KINDS))
    elif form.kind == "zero":
        if form.model is not None or form.token is not None or form.token_id is not None:
            report.problem(node, path, f"found {describe(node)}, expected {{kind: zero}} alone")
    elif form.model is None or (form.token is None) == (form.token_id is None):
        report.problem(node, path, f"found {describe(node)}, expected a model and either token or token_id")
    else:
        read_reference(form.model, join(path, "model"), report)


def _read_source(node: Node | None, path: str, report: Report) -> str | None:
    """The source as written: union, base or a model."""
    if node is None:
        return None
    if isinstance(node.value, str):
        text = node.value.strip().removeprefix(_OLD_PREFIX).strip()
        if text.lower() in ("union", "base"):
            if text != text.lower():
                report.problem(
                    node, path, f"found {text!r}, expected union, base or a model", f"did you mean {text.lower()}?"
                )
            return text.lower()
        node = replace(node, value=text, text=text)
    reference = read_reference(node, path, report)
    return None if reference is None else str(reference)
