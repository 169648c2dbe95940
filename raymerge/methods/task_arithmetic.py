"""Task arithmetic: add what fine-tuning changed."""

from __future__ import annotations

from raymerge.methods.declaration import Base, Combine, merge_method
from raymerge.methods.gram import add_deltas
from raymerge.methods.inputs import Inputs
from raymerge.methods.linear import LAMBDA, WEIGHT, delta_divisor, normalize


@merge_method(
    "task_arithmetic",
    summary="add the models' weighted changes to the base",
    formula="b + lambda * sum w_i (x_i - b), the sum divided by sum w_i if normalize and not 0",
    source="Task arithmetic (arXiv 2212.04089)",
    base=Base.REQUIRED,
    parameters=(WEIGHT, normalize(default=False), LAMBDA),
    in_place=True,
    accepted_without_effect=("int8_mask",),
    example={"weight": [0.5, 0.5]},
)
def task_arithmetic(inputs: Inputs) -> Combine:
    factor = inputs.shared["lambda"] / delta_divisor(inputs)
    return add_deltas(inputs, [factor * weight for weight in inputs.parameter("weight")])
