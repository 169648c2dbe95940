"""Weighted averages of models and of their task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from raymerge.errors import UsageError
from raymerge.methods.declaration import Array, Base, Combine, Parameter, Values, merge_method
from raymerge.methods.inputs import Block, Inputs

WEIGHT = Parameter(name="weight", kind=float, per_input=True, help="share of the model")
LAMBDA = Parameter(name="lambda", kind=float, default=1.0, help="scales the merged change before adding the base")


def normalize(default: bool) -> Parameter:
    return Parameter(name="normalize", kind=bool, default=default, help="divide by the sum of the weights")


def check_weights(shared: Values, each: Sequence[Values]) -> str | None:
    """What is wrong with the weights: normalizing divides by their sum."""
    if shared["normalize"] and fsum(values["weight"] for values in each) == 0:
        return "the weights sum to 0, so they cannot be normalized; set normalize: false, or change a weight"
    return None


def weight_divisor(inputs: Inputs) -> float:
    """The sum of the weights where `normalize` is set, else 1. Raises UsageError for a sum of 0."""
    problem = check_weights(inputs.shared, inputs.each)
    if problem:
        raise UsageError(problem)
    return fsum(values["weight"] for values in inputs.each) if inputs.shared["normalize"] else 1.0


@merge_method(
    "linear",
    summary="average the models, weighted",
    formula="sum w_i x_i, divided by sum w_i if normalize",
    source="Model soups (arXiv 2203.05482)",
    base=Base.INPUT,
    parameters=(WEIGHT, normalize(default=True)),
    check=check_weights,
    example={"weight": [0.6, 0.4]},
)
def linear(inputs: Inputs) -> Combine:
    divisor = weight_divisor(inputs)
    coefficients = [weight / divisor for weight in inputs.parameter("weight")]

    def combine(block: Block) -> Array:
        return block.operations.weighted_sum(coefficients, block.x)

    return combine


@merge_method(
    "task_arithmetic",
    summary="add the models' weighted changes to the base",
    formula="b + lambda * sum w_i (x_i - b), the sum divided by sum w_i if normalize",
    source="Task arithmetic (arXiv 2212.04089)",
    base=Base.REQUIRED,
    parameters=(WEIGHT, normalize(default=False), LAMBDA),
    accepted_without_effect=("int8_mask",),
    check=check_weights,
    example={"weight": [0.5, 0.5]},
)
def task_arithmetic(inputs: Inputs) -> Combine:
    factor = inputs.shared["lambda"] / weight_divisor(inputs)
    coefficients = [factor * weight for weight in inputs.parameter("weight")]
    base_coefficient = fsum([1.0, *(-coefficient for coefficient in coefficients)])

    def combine(block: Block) -> Array:
        return block.operations.weighted_sum([base_coefficient, *coefficients], [block.base, *block.x])

    return combine
