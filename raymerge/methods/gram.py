"""Linear combinations whose coefficients follow from the inputs' dot products: one pass for those, one to combine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import acos, fsum, isfinite, sin, sqrt

from raymerge.compute.sums import PairwiseSum
from raymerge.methods.declaration import Array, Combine
from raymerge.methods.inputs import Block, Inputs

COSINE_ROUNDING = 2.0**-50  # opposite vectors must not be blown up by the sine that rounding leaves them
Matrix = Sequence[Sequence[float]]


def gram_matrix(inputs: Inputs, *, deltas: bool) -> Matrix:
    """Dot products of the inputs, or with `deltas` of their differences from the base where there is one."""
    total = PairwiseSum()
    for block in inputs.scan():
        total.add(block.operations.chunk_gram(block.x, block.base if deltas else None))
    if inputs.element_count == 0:
        return [[0.0] * inputs.count for _ in range(inputs.count)]
    return [[float(value) for value in row] for row in total.total()]


def cosine(gram: Matrix, i: int, j: int) -> float:
    """The cosine between two inputs, 1 or -1 where it is that but for rounding; 0 where one is a zero vector."""
    product = gram[i][i] * gram[j][j]
    norms = sqrt(product) if isfinite(product) and product > 1e-300 else sqrt(gram[i][i]) * sqrt(gram[j][j])
    c = gram[i][j] / norms if norms > 0 else 0.0
    return float((c > 0) - (c < 0)) if abs(c) >= 1 - COSINE_ROUNDING else c


def arc_coefficients(c: float, t: float, *, nearly_parallel: bool) -> list[float]:
    """Coefficients of two vectors at share `t` of the arc between them, c being their cosine."""
    if nearly_parallel:
        return [1 - t, t]
    theta = acos(c)
    return [sin((1 - t) * theta) / sin(theta), sin(t * theta) / sin(theta)]


def exact_sum(values: Iterable[float]) -> float:
    """The sum rounded once, in any order; where it is not finite, whatever adding gives."""
    terms = list(values)
    try:
        return fsum(terms)
    except (OverflowError, ValueError):
        return sum(terms)


def norm(gram: Matrix, coefficients: Sequence[float]) -> float:
    """The norm of a linear combination of the inputs."""
    squared = exact_sum(dot(gram, coefficients, i) * c for i, c in enumerate(coefficients))
    return 0.0 if squared < 0 else sqrt(squared)


def dot(gram: Matrix, coefficients: Sequence[float], i: int) -> float:
    """The dot product of a linear combination with input i."""
    return exact_sum(c * value for c, value in zip(coefficients, gram[i], strict=True))


def combine_linearly(coefficients: Sequence[float], base_coefficient: float | None = None) -> Combine:
    """Combine as sum c_i x_i, plus the base times its coefficient where one is given."""

    def combine(block: Block) -> Array:
        if base_coefficient is None or block.base is None:
            return block.operations.weighted_sum(coefficients, block.x, out=block.out)
        return block.operations.weighted_sum([base_coefficient, *coefficients], [block.base, *block.x], out=block.out)

    return combine


def add_deltas(inputs: Inputs, coefficients: Sequence[float]) -> Combine:
    """Combine as base + sum c_i (x_i - base), or as sum c_i x_i without a base: directly from x, rounded once."""
    if not inputs.has_base:
        return combine_linearly(coefficients)
    return combine_linearly(coefficients, exact_sum([1.0, *(-c for c in coefficients)]))
