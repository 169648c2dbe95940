"""DELLA: drop changes at random, small ones more often."""

from __future__ import annotations

from collections.abc import Sequence

from raymerge.errors import UsageError
from raymerge.methods.declaration import Base, Combine, Parameter, Values, merge_method
from raymerge.methods.inputs import Inputs
from raymerge.methods.linear import LAMBDA, WEIGHT, normalize
from raymerge.methods.sparsify import DENSITY, RESCALE_MODE, add, keep_by_rank, mask_state, rescale, scales
from raymerge.methods.ties import CONSENSUS, elect

EPSILON = Parameter(
    name="epsilon", kind=float, default=0.15, per_input=True, help="largest minus mean probability of being kept"
)
DELTA = (
    "d_i: each entry of x_i - b kept with probability density - epsilon + 2 epsilon rank, rank its place by magnitude "
    "in its row from 0 (smallest) to 1, and scaled to its L1 norm if rescale; all kept at density 1"
)
SOURCE = "DELLA-Merging (arXiv 2406.11617)"


def check_probabilities(_shared: Values, each: Sequence[Values]) -> str | None:
    """Every entry's probability must lie between 0 and 1, both excluded; a density of 1 or more keeps everything."""
    for values in each:
        density, epsilon = values["density"], values["epsilon"]
        if density < 1 and not (density - abs(epsilon) > 0 and density + abs(epsilon) < 1):
            return f"density {density} -/+ epsilon {epsilon} must lie inside (0, 1)"
    return None


@merge_method(
    "della",
    summary="keep a random part of each model's changes, large ones rather, elect a sign, average what agrees",
    formula=(
        "b + lambda * sum w_i d_i over the i whose w_i d_i has the sign of the sum of all, divided by their sum w_i if "
        f"normalize; {DELTA}"
    ),
    source=SOURCE,
    base=Base.REQUIRED,
    parameters=(
        WEIGHT,
        DENSITY,
        EPSILON,
        normalize(default=True),
        rescale(default=True),
        RESCALE_MODE,
        CONSENSUS,
        LAMBDA,
    ),
    passes=1,
    rows=True,
    state=mask_state,
    random=True,
    in_place=True,
    accepted_without_effect=("int8_mask",),
    check=check_probabilities,
    example={"weight": [0.5, 0.5], "density": [0.5, 0.5]},
)
def della(inputs: Inputs) -> Combine:
    _refuse(check_probabilities(inputs.shared, inputs.each))
    open_keepers = keep_by_rank(inputs)
    return elect(inputs, open_keepers(), scales(inputs, open_keepers, rows=True))


@merge_method(
    "della_linear",
    summary="keep a random part of each model's changes, large ones rather, scale it up, add them weighted",
    formula=f"b + lambda * sum w_i d_i, the sum divided by sum w_i if normalize and not 0; {DELTA}",
    source=SOURCE,
    base=Base.REQUIRED,
    parameters=(WEIGHT, DENSITY, EPSILON, normalize(default=False), rescale(default=True), RESCALE_MODE, LAMBDA),
    passes=1,
    rows=True,
    state=mask_state,
    random=True,
    in_place=True,
    accepted_without_effect=("int8_mask",),
    check=check_probabilities,
    example={"weight": [0.5, 0.5], "density": [0.5, 0.5]},
)
def della_linear(inputs: Inputs) -> Combine:
    _refuse(check_probabilities(inputs.shared, inputs.each))
    open_keepers = keep_by_rank(inputs)
    return add(inputs, open_keepers(), scales(inputs, open_keepers, rows=True))


def _refuse(problem: str | None) -> None:
    if problem:
        raise UsageError(problem)
