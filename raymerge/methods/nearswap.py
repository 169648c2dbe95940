"""NearSwap: step from the base towards another model, all the way where they are near."""

from __future__ import annotations

from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Block, Inputs

FLOOR = 1e-6


@merge_method(
    "nearswap",
    summary="take the other model's entry where it is near the base's, else step towards it",
    formula="a + clip(t / max(abs(a-b), 1e-6), 0, 1) (b - a), a the base, b the other model",
    source="NearSwap (model card of alchemonaut/QuartetAnemoi-70B-t0.0001)",
    base=Base.REQUIRED,
    min_inputs=1,
    max_inputs=1,
    parameters=(Parameter(name="t", kind=float, help="the distance below which entries are swapped"),),
    example={"t": 0.0001},
)
def nearswap(inputs: Inputs) -> Combine:
    def combine(block: Block) -> Array:
        return block.operations.step_towards(block.x[0], block.base, inputs.shared["t"], FLOOR)

    return combine
