"""The weighted average, and what its relatives share: weights, their sum, and lambda."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from raymerge.compute.operations import WEIGHT_ROUNDING
from raymerge.errors import UsageError
from raymerge.methods.declaration import Base, Combine, Parameter, Values, merge_method
from raymerge.methods.gram import combine_linearly
from raymerge.methods.inputs import Inputs

WEIGHT = Parameter(name="weight", kind=float, per_input=True, help="share of the model")
LAMBDA = Parameter(name="lambda", kind=float, default=1.0, help="scales the merged change before adding the base")


def normalize(default: bool) -> Parameter:
    return Parameter(name="normalize", kind=bool, default=default, help="divide by the sum of the weights")


def check_weights(shared: Values, each: Sequence[Values]) -> str | None:
    """What is wrong with the weights of a mean: it divides by their sum."""
    if shared["normalize"] and _total([values["weight"] for values in each]) == 0:
        return "the weights sum to 0, so they cannot be normalized; set normalize: false, or change a weight"
    return None


def delta_divisor(inputs: Inputs) -> float:
    """What weighted changes are divided by: the sum of the weights if `normalize`, where it is not 0; else 1."""
    return _total(inputs.parameter("weight")) or 1.0 if inputs.shared["normalize"] else 1.0


def _total(weights: Sequence[float]) -> float:
    """The sum of the weights, 0 where it is that but for rounding: 0.1 + 0.2 - 0.3."""
    total = fsum(weights)
    return total if abs(total) > WEIGHT_ROUNDING * fsum(abs(weight) for weight in weights) else 0.0


@merge_method(
    "linear",
    summary="average the models, weighted",
    formula="sum w_i x_i, divided by sum w_i if normalize",
    source="Model soups (arXiv 2203.05482)",
    base=Base.INPUT,
    parameters=(WEIGHT, normalize(default=True)),
    check=check_weights,
    in_place=True,
    example={"weight": [0.6, 0.4]},
)
def linear(inputs: Inputs) -> Combine:
    problem = check_weights(inputs.shared, inputs.each)
    if problem:
        raise UsageError(problem)
    weights = inputs.parameter("weight")
    divisor = _total(weights) if inputs.shared["normalize"] else 1.0
    return combine_linearly([weight / divisor for weight in weights])
