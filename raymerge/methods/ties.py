"""TIES: trim each model's changes, elect a sign, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence

from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Block, Inputs
from raymerge.methods.linear import LAMBDA, WEIGHT, normalize
from raymerge.methods.sparsify import DENSITY, RESCALE_MODE, Keeper, keep_largest, rescale, scales
from raymerge.methods.state import tables
from raymerge.methods.trim_scope import TRIM_SCOPE, WHOLE_MODEL

CONSENSUS = Parameter(
    name="consensus", kind=str, default="sum", choices=("sum", "count"), help="elect by the sum of changes, or of signs"
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
            count_votes=inputs.shared["consensus"] == "count",
            out=block.out,
        )

    return combine


@merge_method(
    "ties",
    summary="keep each model's largest changes, elect a sign, average the entries that agree",
    formula=(
        "b + lambda * sum w_i d_i over the i whose w_i d_i has the sign of the sum of all, divided by their sum w_i if "
        "normalize; d_i: the floor(density * n) entries of x_i - b that are largest by magnitude, the others 0; "
        "with trim_scope: model the largest of all tensors together"
    ),
    source="TIES-Merging (arXiv 2306.01708)",
    base=Base.REQUIRED,
    parameters=(
        WEIGHT,
        DENSITY,
        TRIM_SCOPE,
        normalize(default=True),
        rescale(default=False),
        RESCALE_MODE,
        CONSENSUS,
        LAMBDA,
    ),
    survey=WHOLE_MODEL,
    passes=5,
    state=tables(per_input=1),
    accepted_without_effect=("int8_mask",),
    example={"weight": [0.5, 0.5], "density": [0.5, 0.5]},
)
def ties(inputs: Inputs) -> Combine:
    open_keepers = keep_largest(inputs)
    return elect(inputs, open_keepers(), scales(inputs, open_keepers))
