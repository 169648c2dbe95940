"""Model breadcrumbs: drop each model's largest and smallest changes."""

from __future__ import annotations

from raymerge.methods.declaration import Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Inputs
from raymerge.methods.linear import LAMBDA, WEIGHT, normalize
from raymerge.methods.sparsify import DENSITY, RESCALE_MODE, add, keep_band, rescale, scales
from raymerge.methods.state import tables
from raymerge.methods.ties import CONSENSUS, elect

GAMMA = Parameter(
    name="gamma", kind=float, default=0.01, per_input=True, is_share=True, help="share of largest changes dropped"
)
DELTA = (
    "d_i: the floor(density * n) entries of x_i - b next below the floor(gamma * n) largest by magnitude, the "
    "floor(density * n) smallest where fewer lie below"
)
SOURCE = "Model Breadcrumbs (arXiv 2312.06795)"


@merge_method(
    "breadcrumbs",
    summary="drop each model's largest and smallest changes, add the others weighted",
    formula=f"b + lambda * sum w_i d_i, the sum divided by sum w_i if normalize and not 0; {DELTA}",
    source=SOURCE,
    base=Base.REQUIRED,
    parameters=(WEIGHT, DENSITY, GAMMA, normalize(default=False), rescale(default=False), RESCALE_MODE, LAMBDA),
    passes=5,
    state=tables(per_input=2),
    accepted_without_effect=("int8_mask",),
    example={"weight": [0.5, 0.5], "density": [0.9, 0.9]},
)
def breadcrumbs(inputs: Inputs) -> Combine:
    open_keepers = keep_band(inputs)
    return add(inputs, open_keepers(), scales(inputs, open_keepers))


@merge_method(
    "breadcrumbs_ties",
    summary="drop each model's largest and smallest changes, elect a sign, add the entries that agree",
    formula=(
        "b + lambda * sum w_i d_i over the i whose w_i d_i has the sign of the sum of all, divided by their sum w_i if "
        f"normalize; {DELTA}"
    ),
    source=f"{SOURCE}, TIES-Merging (arXiv 2306.01708)",
    base=Base.REQUIRED,
    parameters=(
        WEIGHT,
        DENSITY,
        GAMMA,
        normalize(default=False),
        rescale(default=False),
        RESCALE_MODE,
        CONSENSUS,
        LAMBDA,
    ),
    passes=5,
    state=tables(per_input=2),
    accepted_without_effect=("int8_mask",),
    example={"weight": [0.5, 0.5], "density": [0.9, 0.9]},
)
def breadcrumbs_ties(inputs: Inputs) -> Combine:
    open_keepers = keep_band(inputs)
    return elect(inputs, open_keepers(), scales(inputs, open_keepers))
