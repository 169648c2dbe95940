"""The keys a recipe may have, and what kind of value each takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from raymerge.dtypes import DType, recipe_dtype_names
from raymerge.recipe.document import Node, join
from raymerge.recipe.nouns import OnMismatch, OnMissing
from raymerge.recipe.report import Report, describe
from raymerge.recipe.suggest import suggest


@dataclass(frozen=True, slots=True)
class Choices:
    """The words a key takes: a misspelt one is named, and the nearest taken in its place."""

    words: tuple[str, ...]


def _value(node: Node) -> Any:
    return node.value


def _text(node: Node) -> Any:
    """Text as written: a revision of digits alone, or a filter like `31`, is no number."""
    is_number = isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
    return node.text if is_number else node.value


def _integer(node: Node) -> Any:
    """An integer, quoted or not."""
    return int(node.text) if isinstance(node.value, str) and node.text.isascii() and node.text.isdigit() else node.value


def _dtype(node: Node) -> DType:
    try:
        return DType.from_recipe_name(cast("str", _text(node)))
    except (KeyError, AttributeError):
        raise ValueError("unknown") from None


def _words(node: Node) -> Any:
    if isinstance(node.value, tuple):
        return tuple(_text(item) for item in node.value)
    return (_text(node),)


Str = Annotated[str, BeforeValidator(_value)]
Text = Annotated[str, BeforeValidator(_text)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Items = Annotated[tuple[Node, ...], BeforeValidator(_value)]
Entries = Annotated[dict[str, Node], BeforeValidator(_value)]
DTypeName = Annotated[DType | None, BeforeValidator(_dtype), Choices(recipe_dtype_names())]
Count = Annotated[int, BeforeValidator(_integer)]


def _choice(choices: type[OnMissing | OnMismatch]) -> Choices:
    return Choices(tuple(each.value for each in choices))


def _member(choices: type[OnMissing | OnMismatch]) -> BeforeValidator:
    def member(node: Node) -> Any:
        return choices(node.value)

    return BeforeValidator(member)


class Form(BaseModel):
    """Keys of a mapping. A field's description says what is expected; `Node` fields are checked by their readers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class ModuleForm(Form):
    models: Items | None = Field(None, description="a list of models")
    slices: Items | None = Field(None, description="a list of slices")
    parameters: Entries = Field({}, description="a mapping of parameters")


class RecipeForm(ModuleForm):
    merge_method: Str | None = Field(None, description="the name of a merge method")
    modules: Entries | None = Field(None, description="a mapping of tensor-name prefixes")
    base_model: Node | None = None
    dtype: DTypeName = Field(None, description="an element type")
    out_dtype: DTypeName = Field(None, description="an element type")
    keep_dtype: Words = Field((), description="a list of tensor-name patterns")
    on_missing: Annotated[OnMissing, _member(OnMissing), _choice(OnMissing)] = OnMissing.ERROR
    on_mismatch: Annotated[OnMismatch, _member(OnMismatch), _choice(OnMismatch)] = OnMismatch.ERROR
    tokenizer_source: Node | None = None
    tokenizer: Node | None = None
    chat_template: Str | None = Field(None, description="auto, a built-in name or a Jinja2 template")
    name: Text | None = Field(None, description="a name")


class ModelForm(Form):
    """One entry of `models`."""

    model: Node | None = None
    parameters: Entries = Field({}, description="a mapping of parameters")


class SourceForm(ModelForm):
    """One entry of `slices[].sources`."""

    layer_range: Node | None = None


class SliceForm(Form):
    sources: Items | None = Field(None, description="a list of sources")
    base_model: Node | None = None
    parameters: Entries = Field({}, description="a mapping of parameters")


class ConditionForm(Form):
    filter: Text | None = Field(None, description="a part of tensor names")
    value: Node | None = None


class ReferenceForm(Form):
    model: Node | None = None
    lora: Node | None = None
    path: Node | None = None
    revision: Text | None = Field(None, description="a branch, tag or commit")
    override_architecture: Node | None = None


class TokenizerForm(Form):
    source: Node | None = None
    tokens: Entries = Field({}, description="a mapping of tokens")
    pad_to_multiple_of: Count | None = Field(None, gt=0, description="a positive whole number")


class TokenForm(Form):
    source: Node | None = None
    force: Annotated[bool, BeforeValidator(_value)] = Field(False, description="true or false")


class TokenSourceForm(Form):
    kind: Annotated[str, BeforeValidator(_value)] = Field("", description="model_token or zero")
    model: Node | None = None
    token: Text | None = Field(None, description="a token")
    token_id: Count | None = Field(None, ge=0, description="a whole number from 0")


F = TypeVar("F", bound=Form)


def read_form(form: type[F], node: Node, path: str, report: Report) -> F | None:
    """The mapping's values by key. None where there is no mapping; keys that are wrong are reported and left out.

    A key without a value counts as absent.
    """
    if not isinstance(node.value, Mapping):
        expected = f"expected a mapping with {', '.join(form.model_fields)}"
        report.problem(node, path, f"found {describe(node)}, {expected}")
        return None
    entries = {
        key: child for key, child in _with_known_keys(form, node.value, path, report).items() if child.value is not None
    }
    try:
        return form.model_validate(entries)
    except ValidationError as error:
        wrong = {str(flaw["loc"][0]) for flaw in error.errors(include_url=False, include_input=False)}
    for key in sorted(wrong):
        _repair(form.model_fields[key], entries, key, join(path, key), report)
    return form.model_validate(entries)


def _with_known_keys(form: type[F], entries: Mapping[str, Node], path: str, report: Report) -> dict[str, Node]:
    known = {key: child for key, child in entries.items() if key in form.model_fields}
    for key, child in entries.items():
        if key in form.model_fields:
            continue
        suggestion = suggest(key, form.model_fields)
        report.problem(child, join(path, key), "found a key that means nothing here", _remedy(form, suggestion))
        if suggestion is not None and suggestion not in known:
            known[suggestion] = child
            report.index(child, join(path, suggestion))
    return known


def _remedy(form: type[F], suggestion: str | None) -> str:
    if suggestion is not None:
        return f"did you mean {suggestion}?"
    if "parameters" in form.model_fields:
        return "a parameter of the method goes under parameters:, anything else must go"
    return f"expected {', '.join(form.model_fields)}"


def _repair(info: FieldInfo, entries: dict[str, Node], key: str, path: str, report: Report) -> None:
    """Report the value at `key`, and put the nearest choice in its place or drop it."""
    node = entries.pop(key)
    choices = next((each.words for each in info.metadata if isinstance(each, Choices)), ())
    if not choices:
        report.problem(node, path, f"found {describe(node)}, expected {info.description}")
        return
    message = f"found {describe(node)}, expected one of {', '.join(choices)}"
    suggestion = suggest(node.text, _same_digits(node.text, choices)) if isinstance(node.value, str) else None
    report.problem(node, path, message, f"did you mean {suggestion}?" if suggestion is not None else "")
    if suggestion is not None:
        entries[key] = replace(node, value=suggestion, text=suggestion)


def _same_digits(word: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices with the digits of `word`: `fp8` is no misspelling of `fp16`, though only one letter away."""
    digits = sorted(filter(str.isdigit, word))
    return tuple(each for each in choices if not digits or sorted(filter(str.isdigit, each)) == digits)
