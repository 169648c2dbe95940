"""Means on the sphere of any number of models: multislerp and the Karcher mean."""

from __future__ import annotations

from collections.abc import Sequence
from math import acos, cos, fsum, sin, sqrt

from raymerge.errors import Problem, RaymergeError, UsageError
from raymerge.methods.declaration import Base, Combine, Parameter, Values, merge_method
from raymerge.methods.gram import Matrix, add_deltas, combine_linearly, dot, exact_sum, gram_matrix, norm
from raymerge.methods.inputs import Inputs
from raymerge.methods.linear import WEIGHT, check_weights


def _check(shared: Values, each: Sequence[Values]) -> str | None:
    problem = check_weights({"normalize": shared["normalize_weights"]}, each)
    return problem and problem.replace("normalize:", "normalize_weights:")


@merge_method(
    "multislerp",
    summary="average any number of models, or their changes to a base, on the sphere",
    formula=(
        "cos(eps) m * sum w_i norm_i (+ b), m the weighted mean of u_i = x_i/(norm_i + eps) (of x_i - b with a base), "
        "itself a unit vector; one would then move to the mean of the u_i in the tangent space at m, which is 0 by "
        "construction; sum w_i x_i (+ b) for two models that cancel"
    ),
    source="spherical weighted averages (ACM Transactions on Graphics 2001, doi 10.1145/502122.502124), one step",
    base=Base.OPTIONAL,
    parameters=(
        WEIGHT,
        Parameter(name="normalize_weights", kind=bool, default=True, help="divide by the sum of the weights"),
        Parameter(name="eps", kind=float, default=1e-8, help="below this norm a weighted mean of unit vectors is 0"),
    ),
    passes=1,
    in_place=True,
    passes_lone_tensor_through=True,
    check=_check,
    example={"weight": [0.5, 0.5]},
)
def multislerp(inputs: Inputs) -> Combine:
    weights, eps = _weights(inputs), inputs.shared["eps"]
    gram = gram_matrix(inputs, deltas=True)
    norms = [sqrt(gram[i][i]) for i in range(inputs.count)]
    direction = [0.0 if size == 0 else w / (size + eps) for w, size in zip(weights, norms, strict=True)]
    length = norm(gram, direction)
    cancels = length <= eps * exact_sum(abs(c) * size for c, size in zip(direction, norms, strict=True))
    if not cancels:  # or not a number
        scale = cos(eps) * exact_sum(w * size for w, size in zip(weights, norms, strict=True)) / length
        return add_deltas(inputs, [scale * c for c in direction])
    if inputs.count == 2:
        return add_deltas(inputs, weights)
    if all(size == 0 for size in norms):
        return add_deltas(inputs, [0.0] * inputs.count)
    raise RaymergeError(
        Problem(
            message="the weighted unit vectors of the models cancel, so that their mean has no direction",
            remedy="change a weight, or merge this tensor by another method",
        )
    )


def _weights(inputs: Inputs) -> list[float]:
    problem = _check(inputs.shared, inputs.each)
    if problem:
        raise UsageError(problem)
    weights = inputs.parameter("weight")
    total = fsum(weights) if inputs.shared["normalize_weights"] else 1.0
    return [weight / total for weight in weights]


@merge_method(
    "karcher",
    summary="average any number of models along the sphere, exactly: the Riemannian mean",
    formula=(
        "m * mean of the norms, m the Karcher mean of the unit vectors x_i/norm_i: from their normalized mean, "
        "m <- exp_m(mean of log_m(u_i)) until that step is below tol, at most max_iter times; zeros have no direction"
    ),
    source="Riemannian center of mass (Comm. Pure and Applied Mathematics 1977, doi 10.1002/cpa.3160300502)",
    base=Base.INPUT,
    parameters=(
        Parameter(name="max_iter", kind=int, default=10, minimum=0, help="most iterations"),
        Parameter(name="tol", kind=float, default=1e-5, help="an iteration that moves less than this is the last"),
    ),
    passes=1,
    in_place=True,
    passes_lone_tensor_through=True,
)
def karcher(inputs: Inputs) -> Combine:
    gram = gram_matrix(inputs, deltas=False)
    norms = [sqrt(gram[i][i]) for i in range(inputs.count)]
    present = [i for i, size in enumerate(norms) if size != 0]
    if not present:
        return combine_linearly([0.0] * inputs.count)
    units = [[gram[i][j] / (norms[i] * norms[j]) for j in present] for i in present]
    mean = _karcher_mean(units, inputs.shared["max_iter"], inputs.shared["tol"])
    size = exact_sum(norms) / inputs.count
    coefficients = [0.0] * inputs.count
    for c, i in zip(mean, present, strict=True):
        coefficients[i] = size * c / norms[i]
    return combine_linearly(coefficients)


def _karcher_mean(gram: Matrix, max_iter: int, tol: float) -> list[float]:
    """Coefficients of the Karcher mean of unit vectors, from their Gram matrix."""
    count = len(gram)
    mean = _unit(gram, [1 / count] * count) or [1.0, *[0.0] * (count - 1)]
    for _ in range(max_iter):
        step = _mean_logarithm(gram, mean, tol)
        length = norm(gram, step)
        if length < tol:
            break
        moved = [cos(length) * m + sin(length) / length * s for m, s in zip(mean, step, strict=True)]
        mean = _unit(gram, moved) or mean
    return mean


def _mean_logarithm(gram: Matrix, mean: Sequence[float], tol: float) -> list[float]:
    """The mean of the tangent vectors that lead from `mean` to each unit vector, as coefficients."""
    count = len(gram)
    step = [0.0] * count
    for i in range(count):
        c = max(-1.0, min(1.0, dot(gram, mean, i)))
        theta = acos(c)
        if theta < tol or sin(theta) < 1e-12:  # at the point itself, or opposite, where no direction is the shortest
            continue
        share = theta / sin(theta) / count
        step = [s - share * c * m for s, m in zip(step, mean, strict=True)]
        step[i] += share
    return step


def _unit(gram: Matrix, coefficients: Sequence[float]) -> list[float] | None:
    """The combination at norm 1; None for one that is 0 but for rounding."""
    length = norm(gram, coefficients)
    return [c / length for c in coefficients] if length > 1e-12 else None
