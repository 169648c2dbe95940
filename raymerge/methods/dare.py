"""DARE: drop entries of each model's change at random, scale up the rest."""

from __future__ import annotations

from raymerge.methods.declaration import Base, Combine, merge_method
from raymerge.methods.inputs import Inputs
from raymerge.methods.linear import LAMBDA, WEIGHT, normalize
from raymerge.methods.sparsify import DENSITY, RESCALE_MODE, add, keep_random, mask_state, rescale, scales
from raymerge.methods.ties import CONSENSUS, elect

DELTA = "d_i: each entry of x_i - b kept with probability density, and scaled to its L1 norm if rescale"
SOURCE = "DARE (arXiv 2311.03099)"


@merge_method(
    "dare_linear",
    summary="keep a random part of each model's changes, scale it up, add them weighted",
    formula=f"b + lambda * sum w_i d_i, the sum divided by sum w_i if normalize and not 0; {DELTA}",
    source=SOURCE,
    base=Base.REQUIRED,
    parameters=(WEIGHT, DENSITY, normalize(default=False), rescale(default=True), RESCALE_MODE, LAMBDA),
    passes=1,
    state=mask_state,
    random=True,
    in_place=True,
    accepted_without_effect=("int8_mask",),
    example={"weight": [0.5, 0.5], "density": [0.5, 0.5]},
)
def dare_linear(inputs: Inputs) -> Combine:
    open_keepers = keep_random(inputs)
    return add(inputs, open_keepers(), scales(inputs, open_keepers))


@merge_method(
    "dare_ties",
    summary="keep a random part of each model's changes, scale it up, elect a sign, add the entries that agree",
    formula=(
        "b + lambda * sum w_i d_i over the i whose w_i d_i has the sign of the sum of all, divided by their sum w_i if "
        f"normalize; {DELTA}"
    ),
    source=f"{SOURCE}, TIES-Merging (arXiv 2306.01708)",
    base=Base.REQUIRED,
    parameters=(WEIGHT, DENSITY, normalize(default=False), rescale(default=True), RESCALE_MODE, CONSENSUS, LAMBDA),
    passes=1,
    state=mask_state,
    random=True,
    in_place=True,
    accepted_without_effect=("int8_mask",),
    example={"weight": [0.5, 0.5], "density": [0.5, 0.5]},
)
def dare_ties(inputs: Inputs) -> Combine:
    open_keepers = keep_random(inputs)
    return elect(inputs, open_keepers(), scales(inputs, open_keepers))
