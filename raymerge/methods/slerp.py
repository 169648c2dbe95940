"""Spherical interpolation between two models."""

from __future__ import annotations

from math import acos, sin, sqrt

from raymerge.compute.sums import PairwiseSum
from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Block, Inputs

NEARLY_PARALLEL = 0.9995  # the cosine beyond which the peer interpolates linearly; recipes rely on its results


def gram_matrix(inputs: Inputs, *, deltas: bool) -> list[list[float]]:
    """Dot products of the inputs, or of their deltas where there is a base and they are asked for: one pass."""
    total = PairwiseSum()
    for block in inputs.scan():
        total.add(block.operations.chunk_gram(block.x, block.base if deltas else None))
    if inputs.element_count == 0:
        return [[0.0] * inputs.count for _ in range(inputs.count)]
    return [[float(value) for value in row] for row in total.total()]


def cosine(gram: list[list[float]], i: int, j: int) -> float:
    """The cosine between two inputs; 0 where one of them is a zero vector."""
    norms = sqrt(gram[i][i]) * sqrt(gram[j][j])
    return gram[i][j] / norms if norms > 0 else 0.0


@merge_method(
    "slerp",
    summary="blend two models along the arc between them",
    formula=(
        "sin((1-t) theta)/sin(theta) a + sin(t theta)/sin(theta) b, theta the angle between a (base) and b; "
        "(1-t) a + t b where abs(cos(theta)) > 0.9995"
    ),
    source="Animating rotation with quaternion curves (SIGGRAPH 1985, doi 10.1145/325334.325242)",
    base=Base.FIRST,
    min_inputs=2,
    max_inputs=2,
    parameters=(Parameter(name="t", kind=float, help="0 is the base model, 1 the other one"),),
    passes=1,
    passes_lone_tensor_through=True,
    example={"t": 0.5},
)
def slerp(inputs: Inputs) -> Combine:
    t = inputs.shared["t"]
    c = cosine(gram_matrix(inputs, deltas=False), 0, 1)
    if abs(c) > NEARLY_PARALLEL:
        coefficients = [1 - t, t]
    else:
        theta = acos(c)
        coefficients = [sin((1 - t) * theta) / sin(theta), sin(t * theta) / sin(theta)]

    def combine(block: Block) -> Array:
        return block.operations.weighted_sum(coefficients, block.x)

    return combine
