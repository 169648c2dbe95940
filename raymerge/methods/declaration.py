"""What a merge method declares beside its formula, so that recipes, plans and docs know it without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from raymerge.errors import UsageError

if TYPE_CHECKING:
    from raymerge.methods.inputs import Block, Inputs

Array = Any  # a numpy array on the CPU, a torch tensor on any other device: 1-D, float32 or float64
Combine = Callable[["Block"], Array]
Merge = Callable[["Inputs"], Combine]
ParameterValue = float | int | bool | str | None
Values = Mapping[str, Any]
Check = Callable[[Values, Sequence[Values]], "str | None"]


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
    """

    name: str
    kind: type
    default: ParameterValue | Missing = REQUIRED
    per_input: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A merge method: its declaration, and `merge`, which turns one tensor's inputs into a block-wise combine.

    `passes` is the most scans over float32 blocks that `merge` makes before it returns (over float64 ones twice that);
    `rows` says that it needs blocks of whole rows (last dimension); `random` that it draws from the inputs' keys.
    `passes_lone_tensor_through`: a tensor that only one input has is copied (mergekit's rule for slerp-like methods).
    `check`, given the shared values and each input's, says what makes them impossible together, or None: the plan asks
    it for every tensor. `example` holds the parameters of `raymerge methods NAME --example`, of per-input ones a list
    with an entry for each model.
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
    random: bool = False
    passes_lone_tensor_through: bool = False
    accepted_without_effect: tuple[str, ...] = ()
    check: Check | None = None
    example: dict[str, Any] = field(default_factory=dict)

    def parameter(self, name: str) -> Parameter | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


_REGISTRY: dict[str, Method] = {}


def merge_method(
    name: str, *, summary: str, formula: str, source: str, base: Base = Base.INPUT, **declaration: Any
) -> Callable[[Merge], Merge]:
    """Register a function `merge(inputs: Inputs) -> Combine` as the method `name`.

    Every further keyword is a field of `Method`. Raises UsageError if another method has that name.
    """

    def register(merge: Merge) -> Merge:
        known = _REGISTRY.get(name)
        if known is not None and known.merge.__module__ != merge.__module__:
            raise UsageError(
                f"merge method {name!r} is defined twice: in {known.merge.__module__} and {merge.__module__}"
            )
        _REGISTRY[name] = Method(
            name=name, summary=summary, formula=formula, source=source, base=base, merge=merge, **declaration
        )
        return merge

    return register


def registered_methods() -> dict[str, Method]:
    """Methods by name, in order of registration; `raymerge.methods.all_methods()` loads the built-in ones first."""
    return dict(_REGISTRY)
