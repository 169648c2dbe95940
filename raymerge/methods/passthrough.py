"""One input as it is."""

from __future__ import annotations

from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Block, Inputs


@merge_method(
    "passthrough",
    summary="take the one input as it is, to stack layers of several models",
    formula="scale * x; x itself without a scale",
    source="depth up-scaling (arXiv 2312.15166)",
    base=Base.INPUT,
    min_inputs=1,
    max_inputs=1,
    parameters=(Parameter(name="scale", kind=float, default=None, per_input=True, help="multiplies the tensor"),),
)
def passthrough(inputs: Inputs) -> Combine:
    (scale,) = inputs.parameter("scale")

    def combine(block: Block) -> Array:
        return block.x[0] if scale is None else block.operations.weighted_sum([scale], block.x, out=block.out)

    return combine
