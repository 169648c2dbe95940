"""A recipe, parsed and checked for form: what to merge, from what, with which settings. Holds no file and no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from raymerge.dtypes import DType

Scalar = float | int | bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """A model as the recipe names it: hub id, local path or URL, an optional revision, an optional adapter."""

    path: str
    revision: str | None = None
    adapter: ModelReference | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        adapter = f"+{self.adapter}" if self.adapter else ""
        return f"{self.path}{revision}{adapter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One entry of a conditional setting: `value` where `filter` is None, "*" or a substring of the tensor name."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A parameter's value as written: a scalar, a gradient over layers (tuple), or conditions by tensor name."""

    value: Scalar | tuple[Scalar, ...] | tuple[Condition, ...]
    line: int | None = None


Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One model of a merge, or a range of its layers: `layer_range` is [first, end)."""

    model: ModelReference
    layer_range: tuple[int, int] | None = None
    parameters: Settings = field(default_factory=dict)
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Consecutive output layers: the i-th comes from the i-th layer of every source's range (all of one length)."""

    sources: tuple[Source, ...]
    base_model: ModelReference | None = None
    parameters: Settings = field(default_factory=dict)
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A part of the model (`prefix` of its tensor names, "" for all of it): whole models or slices, never both."""

    prefix: str = ""
    models: tuple[Source, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Settings = field(default_factory=dict)
    line: int | None = None


class OnMissing(Enum):
    """What happens to a tensor that some inputs lack."""

    ERROR = "error"
    BASE = "base"
    SKIP = "skip"


class OnMismatch(Enum):
    """What happens to a tensor that some inputs have in another shape."""

    ERROR = "error"
    BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One merge.

    `text` is the recipe as written, for the model card; `lines` maps a key's path ("dtype", "models[1].model") to its
    1-based line. `tokenizer_source` is "union", "base" or a model reference as written; `tokenizer` the mapping form.
    """

    merge_method: str
    modules: tuple[Module, ...]
    base_model: ModelReference | None = None
    parameters: Settings = field(default_factory=dict)
    dtype: DType | None = None
    out_dtype: DType | None = None
    keep_dtype: tuple[str, ...] = ()
    on_missing: OnMissing = OnMissing.ERROR
    on_mismatch: OnMismatch = OnMismatch.ERROR
    tokenizer_source: str | None = None
    tokenizer: Mapping[str, Any] | None = None
    chat_template: str | None = None
    name: str | None = None
    text: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
