"""A document's tree to a `Recipe`: what is wrong is reported, repaired or left out, and the reading goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raymerge.recipe.document import Node, join
from raymerge.recipe.form import (
    ModuleForm,
    RecipeForm,
    SliceForm,
    SourceForm,
    read_form,
)
from raymerge.recipe.nouns import Module, Recipe, Slice, Source
from raymerge.recipe.report import Report, describe
from raymerge.recipe.suggest import suggest
from raymerge.recipe.tokenizer import read_tokenizer
from raymerge.recipe.values import read_layer_range, read_reference, read_settings

CHAT_TEMPLATES = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")


def assemble(root: Node, text: str, report: Report) -> Recipe | None:
    """None where nothing is left to plan: no mapping, or no model in it."""
    form = read_form(RecipeForm, root, "", report)
    if form is None:
        return None
    merge_method = (form.merge_method or "").strip()
    if not merge_method and (form.merge_method is not None or not _is_given(root, "merge_method", "", report)):
        report.problem(root, "merge_method", "found no method, expected its name", "`raymerge methods` lists them")
    base_model = read_reference(form.base_model, "base_model", report)
    modules = _read_modules(form, root, report)
    tokenizer_source, tokenizer = read_tokenizer(form.tokenizer_source, form.tokenizer, report)
    chat_template = _read_chat_template(form, root, report)
    parameters = read_settings(form.parameters, "parameters", report)
    if not modules:
        return None
    return Recipe(
        merge_method=merge_method,
        modules=modules,
        base_model=base_model,
        parameters=parameters,
        dtype=form.dtype,
        out_dtype=form.out_dtype,
        keep_dtype=form.keep_dtype,
        on_missing=form.on_missing,
        on_mismatch=form.on_mismatch,
        tokenizer_source=tokenizer_source,
        tokenizer=tokenizer,
        chat_template=chat_template,
        name=form.name,
        text=text,
        lines=report.lines,
    )


def _read_modules(form: RecipeForm, root: Node, report: Report) -> tuple[Module, ...]:
    kind = _only_one(("models", "slices", "modules"), form, root, "", report)
    if kind != "modules":
        module = _read_contents(form, kind, "", report)
        return (module,) if module is not None else ()
    modules = []
    for prefix, node in (form.modules or {}).items():
        path = join("modules", prefix)
        inner = read_form(ModuleForm, node, path, report)
        if inner is None:
            continue
        inner_kind = _only_one(("models", "slices"), inner, node, path, report)
        module = _read_contents(inner, inner_kind, path, report)
        if module is not None:
            parameters = read_settings(inner.parameters, join(path, "parameters"), report)
            modules.append(replace(module, prefix=prefix, parameters=parameters, line=node.line))
    if not form.modules:
        report.problem(_entry(root, "modules"), "modules", "found no module, expected at least one")
    return tuple(modules)


def _only_one(kinds: tuple[str, ...], form: ModuleForm, node: Node, path: str, report: Report) -> str | None:
    """Which of `kinds` the mapping holds; the first in the file where it holds several."""
    named = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    found = [kind for kind in kinds if getattr(form, kind) is not None]
    found.sort(key=lambda kind: report.lines[join(path, kind)])
    for extra in found[1:]:
        message = f"found beside {found[0]}, expected exactly one of {named}"
        report.problem(_entry(node, extra), join(path, extra), message, "keep one of them")
    if found:
        return found[0]
    if not any(_is_given(node, kind, path, report) for kind in kinds):
        report.problem(node, path or "models", f"found no model, expected exactly one of {named}")
    return None


def _read_contents(form: ModuleForm, kind: str | None, path: str, report: Report) -> Module | None:
    if kind is None:
        return None
    items: tuple[Node, ...] = getattr(form, kind)
    inner = join(path, kind)
    if not items:
        message = f"found an empty list, expected at least one {kind[:-1]}"
        report.problem(Node(value=(), line=report.lines[inner]), inner, message)
        return None
    line = report.lines[inner]
    if kind == "models":
        models = tuple(
            source
            for index, item in enumerate(items)
            if (source := _read_source(item, f"{inner}[{index}]", report, ranged=False)) is not None
        )
        return Module(models=models, line=line) if models else None
    slices = tuple(
        part for index, item in enumerate(items) if (part := _read_slice(item, f"{inner}[{index}]", report)) is not None
    )
    return Module(slices=slices, line=line) if slices else None


def _read_source(node: Node, path: str, report: Report, *, ranged: bool) -> Source | None:
    if isinstance(node.value, str):
        report.problem(node, path, f"found {describe(node)}, expected a mapping", f"write `- model: {node.text[:80]}`")
        model = read_reference(node, path, report)
        return Source(model=model, line=node.line) if model is not None and not ranged else None
    form = read_form(SourceForm, node, path, report)
    if form is None:
        return None
    if form.model is None:
        report.problem(node, path, "found no model, expected `model:`")
    model = read_reference(form.model, join(path, "model"), report)
    parameters = read_settings(form.parameters, join(path, "parameters"), report)
    layer_range = _read_range(form, node, path, report, ranged=ranged)
    if model is None or (ranged and layer_range is None):
        return None
    return Source(model=model, layer_range=layer_range, parameters=parameters, line=node.line)


def _read_range(form: SourceForm, node: Node, path: str, report: Report, *, ranged: bool) -> tuple[int, int] | None:
    inner = join(path, "layer_range")
    if form.layer_range is not None and not ranged:
        remedy = "ranges go with the sources of slices:, whole models need none"
        report.problem(form.layer_range, inner, "found a range of layers, expected whole models under models:", remedy)
        return None
    if form.layer_range is not None:
        return read_layer_range(form.layer_range, inner, report)
    if ranged:
        report.problem(node, inner, "found no range of layers, expected [first, end)", "`layer_range: [0, 32]`, say")
    return None


def _read_slice(node: Node, path: str, report: Report) -> Slice | None:
    form = read_form(SliceForm, node, path, report)
    if form is None:
        return None
    inner = join(path, "sources")
    if not form.sources and (form.sources is not None or not _is_given(node, "sources", path, report)):
        report.problem(_entry(node, "sources"), inner, "found no source, expected at least one model and its layers")
    sources = tuple(
        source
        for index, item in enumerate(form.sources or ())
        if (source := _read_source(item, f"{inner}[{index}]", report, ranged=True)) is not None
    )
    base_model = read_reference(form.base_model, join(path, "base_model"), report)
    parameters = read_settings(form.parameters, join(path, "parameters"), report)
    if not sources:
        return None
    sources = _of_one_length(sources, node, path, report)
    return Slice(sources=sources, base_model=base_model, parameters=parameters, line=node.line)


def _of_one_length(sources: tuple[Source, ...], node: Node, path: str, report: Report) -> tuple[Source, ...]:
    """The sources, cut to the shortest range, which is a problem where they differ."""
    ranges = [source.layer_range for source in sources if source.layer_range is not None]
    lengths = [end - first for first, end in ranges]
    if len(set(lengths)) <= 1:
        return sources
    message = f"found ranges of {', '.join(map(str, lengths))} layers, expected one length for all sources of a slice"
    report.problem(_entry(node, "sources"), join(path, "sources"), message)
    shortest = min(lengths)
    return tuple(
        replace(source, layer_range=(first, first + shortest))
        for source, (first, _) in zip(sources, ranges, strict=True)
    )


def _read_chat_template(form: RecipeForm, root: Node, report: Report) -> str | None:
    template = form.chat_template
    if template is None or template in CHAT_TEMPLATES or "{" in template:
        return template
    suggestion = suggest(template, CHAT_TEMPLATES)
    expected = f"expected {', '.join(CHAT_TEMPLATES)} or a Jinja2 template"
    remedy = f"did you mean {suggestion}?" if suggestion is not None else ""
    report.problem(_entry(root, "chat_template"), "chat_template", f"found {template[:80]!r}, {expected}", remedy)
    return suggestion


def _is_given(node: Node, key: str, path: str, report: Report) -> bool:
    """Whether the mapping sets `key`, perhaps misspelt; a key without a value is not set."""
    return join(path, key) in report.lines and _entry(node, key).value is not None


def _entry(node: Node, key: str) -> Node:
    """The value at `key`; the mapping itself where the key is misspelt or missing."""
    return node.value.get(key, node) if isinstance(node.value, Mapping) else node
