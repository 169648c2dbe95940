"""What a merge method declares beside its formula, so that recipes, plans and docs know it without running it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from raymerge.errors import UsageError

if TYPE_CHECKING:
    from raymerge.methods.inputs import Block, Inputs
    from raymerge.methods.survey import Survey

Array = Any  # a numpy array on the CPU, a torch tensor on any other device: 1-D, float32 or float64
Combine = Callable[["Block"], Array]
Merge = Callable[["Inputs"], Combine]
ParameterValue = float | int | bool | str | None
Values = Mapping[str, Any]
Check = Callable[[Values, Sequence[Values]], "str | None"]
State = Callable[[tuple[int, ...], Values, int], int]
MergeT = TypeVar("MergeT", bound=Merge)


class Base(Enum):
    """What a recipe's `base_model` is to a method."""

    INPUT = "an input like the others"
    REQUIRED = "required, and not among the inputs"
    OPTIONAL = "optional, and not among the inputs"
    FIRST = "the first of the inputs"


class Missing(Enum):
    """The default of a parameter that the recipe must set."""

    REQUIRED = "required"


REQUIRED = Missing.REQUIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One setting of a method. `per_input` ones have a value for each model, the others one for the tensor.

    `minimum` and `maximum` are inclusive. `kind` is float, int, bool or str; an int is accepted where a float is asked.
    A `is_share` lies between 0 and 1; what lies beyond means the same as that end, and the plan warns.
    """

    name: str
    kind: type
    default: ParameterValue | Missing = REQUIRED
    per_input: bool = False
    minimum: float | None = None
    maximum: float | None = None
    is_share: bool = False
    choices: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A merge method: its declaration, and `merge`, which turns one tensor's inputs into a block-wise combine.

    `passes` is the most scans over float32 blocks that `merge` makes before it returns (over float64 ones twice that);
    `rows` says that it needs blocks of whole rows (last dimension), with `rows_when` only where that holds of the
    shared values; `random` that it draws from the inputs' keys; `in_place` that neither its scans nor its combine make
    as many floats as a block has, but write to `block.out`: blocks of stored elements, which only methods of this
    package get, are then much longer. `state` is the memory that it keeps through a tensor beside blocks, in bytes, by
    the tensor's shape, the shared values and the number of inputs: tables of counts, and whatever grows with rows or
    columns; the plan counts it.
    `device_bound` methods take exp or log of single elements, which devices and architectures round differently.
    `passes_lone_tensor_through`: a tensor that only one input has is copied (mergekit's rule for slerp-like methods).
    `check`, given the shared values and each input's, says what makes them impossible together, or None: the plan asks
    it for every tensor. `example` holds the parameters of `raymerge methods NAME --example`, of per-input ones a list
    with an entry for each model. `survey` is a first phase, over the whole model.
    """

    name: str
    summary: str
    formula: str
    source: str
    base: Base
    merge: Merge
    min_inputs: int = 1
    max_inputs: int | None = None
    parameters: tuple[Parameter, ...] = ()
    passes: int = 0
    rows: bool = False
    rows_when: Callable[[Values], bool] | None = None
    state: State | None = None
    random: bool = False
    in_place: bool = False
    device_bound: bool = False
    passes_lone_tensor_through: bool = False
    accepted_without_effect: tuple[str, ...] = ()
    check: Check | None = None
    survey: Survey | None = None
    example: dict[str, Any] = field(default_factory=dict)

    def needs_rows(self, shared: Values) -> bool:
        return self.rows and (self.rows_when is None or self.rows_when(shared))

    def parameter(self, name: str) -> Parameter | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


_REGISTRY: dict[str, Method] = {}


def merge_method(
    name: str, *, summary: str, formula: str, source: str, base: Base = Base.INPUT, **declaration: Any
) -> Callable[[MergeT], MergeT]:
    """Register `merge(inputs: Inputs) -> Combine` as the method `name`: a function, or a class whose objects combine.

    Every further keyword is a field of `Method`. Raises UsageError if another method has that name, or for a
    declaration that no recipe could use.
    """

    def register(merge: MergeT) -> MergeT:
        declared = Method(
            name=name, summary=summary, formula=formula, source=source, base=base, merge=merge, **declaration
        )
        problem = complaint(declared)
        known = _REGISTRY.get(name)
        if known is not None and known.merge.__module__ != merge.__module__:
            problem = f"is defined twice: in {_place(known.merge.__module__)} and {_place(merge.__module__)}"
        if problem:
            raise UsageError(f"merge method {name!r} {problem}")
        _REGISTRY[name] = declared
        return merge

    return register


def declared_method(name: str) -> Method | None:
    """A method that is registered already; `raymerge.methods.method` loads the others first."""
    return _REGISTRY.get(name)


def registered_methods() -> dict[str, Method]:
    """Methods by name, in order of registration; `raymerge.methods.all_methods()` loads the built-in ones first."""
    return dict(_REGISTRY)


def forget_module(module: str) -> None:
    """Take back what a module declared."""
    for name in [name for name, known in _REGISTRY.items() if known.merge.__module__ == module]:
        del _REGISTRY[name]


def complaint(method: Method) -> str | None:
    """What is wrong with a declaration; None if nothing is."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", method.name) or method.name == "copy":
        return "needs another name: lower-case letters, digits and underscores (copy is taken)"
    if not isinstance(method.base, Base):
        return f"has base {method.base!r}, expected one of {', '.join(map(str, Base))}"
    if not isinstance(method.parameters, tuple) or not all(isinstance(each, Parameter) for each in method.parameters):
        return "has parameters that are no tuple of Parameter: one alone is written (Parameter(...),)"
    names = [parameter.name for parameter in method.parameters]
    if len(set(names)) < len(names):
        return f"declares a parameter twice: {', '.join(names)}"
    for parameter in method.parameters:
        problem = _parameter_complaint(parameter)
        if problem:
            return f"has parameter {parameter.name!r} {problem}"
    unknown = [name for name in method.example if name not in names]
    return f"has an example of {', '.join(unknown)}, which it does not declare" if unknown else None


def _parameter_complaint(parameter: Parameter) -> str | None:
    if parameter.kind not in (float, int, bool, str):
        return f"of kind {parameter.kind!r}, expected float, int, bool or str"
    if parameter.is_share and parameter.kind is not float:
        return f"of kind {parameter.kind.__name__} as a share, expected float"
    if parameter.default is None or parameter.default is REQUIRED:
        return None
    kinds = (float, int) if parameter.kind is float else (parameter.kind,)
    if type(parameter.default) not in kinds:
        return f"with default {parameter.default!r}, expected a {parameter.kind.__name__}"
    return None


def _place(module: str) -> str:
    """A module by its file where that says more than its name."""
    path = getattr(sys.modules.get(module), "__file__", None)
    return "raymerge itself" if module.partition(".")[0] == __name__.partition(".")[0] else str(path or module)
