"""RAM: keep what only one model changed, average what several changed."""

from __future__ import annotations

from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Block, Inputs

EPSILON = Parameter(name="epsilon", kind=float, default=1e-5, help="a change no larger than this counts as none")
SOURCE = "Behavior Knowledge Merge in Reinforced Agentic Models (arXiv 2601.13572)"


def _combine(inputs: Inputs, gains: list[float]) -> Combine:
    def combine(block: Block) -> Array:
        return block.operations.active_mean(block.x, block.base, inputs.shared["epsilon"], gains)

    return combine


@merge_method(
    "ram",
    summary="add each entry that one model changed, the mean where several changed it",
    formula="b + the mean of the x_i - b that are larger than epsilon by magnitude; b where none is",
    source=SOURCE,
    base=Base.REQUIRED,
    parameters=(EPSILON,),
)
def ram(inputs: Inputs) -> Combine:
    return _combine(inputs, [1.0] * inputs.count)


@merge_method(
    "ramplus_tl",
    summary="as ram, and scale up what only one model changed by how much it shares with others",
    formula=(
        "as ram, the entries that only model i changed times 1 + r clip(rho_i, 0, alpha), rho_i the number of entries "
        "it and others changed over the number that it alone changed"
    ),
    source=SOURCE,
    base=Base.REQUIRED,
    parameters=(
        Parameter(name="r", kind=float, default=0.1, help="how strongly unique changes are scaled up"),
        Parameter(name="alpha", kind=float, default=0.2, help="the most that rho counts"),
        EPSILON,
    ),
    passes=1,
)
def ramplus_tl(inputs: Inputs) -> Combine:
    shared, unique = [0] * inputs.count, [0] * inputs.count
    for block in inputs.scan():
        counts = block.operations.active_counts(block.x, block.base, inputs.shared["epsilon"])
        for i, (shared_count, unique_count) in enumerate(counts):
            shared[i] += shared_count
            unique[i] += unique_count
    alpha, r = inputs.shared["alpha"], inputs.shared["r"]
    ratios = [s / u if u > 0 else 0.0 for s, u in zip(shared, unique, strict=True)]
    return _combine(inputs, [1 + r * min(max(rho, 0.0), alpha) for rho in ratios])
