"""TIES: trim each model's changes, elect a sign, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence

from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Block, Inputs
from raymerge.methods.linear import LAMBDA, WEIGHT, normalize
from raymerge.methods.sparsify import Keeper, keep_largest, l1_scales

DENSITY = Parameter(name="density", kind=float, default=1.0, per_input=True, help="share of the changes kept")


def rescale(default: bool) -> Parameter:
    return Parameter(
        name="rescale", kind=bool, default=default, help="scale what is kept to the L1 norm the changes had before"
    )


def elect(inputs: Inputs, keepers: Sequence[Keeper], scales: Sequence[float]) -> Combine:
    """Combine by sign election: kept entries times their weight and scale, the mean of those of the elected sign."""
    weights = inputs.parameter("weight")
    coefficients = [weight * scale for weight, scale in zip(weights, scales, strict=True)]

    def combine(block: Block) -> Array:
        return block.operations.elect(
            block.x,
            block.base,
            [keeper(block, i) for i, keeper in enumerate(keepers)],
            coefficients,
            weights,
            factor=inputs.shared["lambda"],
            divide=inputs.shared["normalize"],
        )

    return combine


@merge_method(
    "ties",
    summary="keep each model's largest changes, elect a sign, average the entries that agree",
    formula=(
        "b + lambda * sum w_i d_i / sum w_i over the i whose w_i d_i has the sign of the sum of all; "
        "d_i: the floor(density * n) entries of x_i - b largest by magnitude, else 0"
    ),
    source="TIES-Merging (arXiv 2306.01708)",
    base=Base.REQUIRED,
    parameters=(WEIGHT, DENSITY, normalize(default=True), rescale(default=False), LAMBDA),
    passes=3,
    accepted_without_effect=("int8_mask",),
    example={"weight": [0.5, 0.5], "density": [0.5, 0.5]},
)
def ties(inputs: Inputs) -> Combine:
    keepers = keep_largest(inputs)
    scales = l1_scales(inputs, keepers) if inputs.shared["rescale"] else [1.0] * inputs.count
    return elect(inputs, keepers(), scales)
