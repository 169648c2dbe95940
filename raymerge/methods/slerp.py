"""Spherical interpolation between two models."""

from __future__ import annotations

from raymerge.methods.declaration import Base, Combine, Parameter, merge_method
from raymerge.methods.gram import arc_coefficients, combine_linearly, cosine, gram_matrix
from raymerge.methods.inputs import Inputs

NEARLY_PARALLEL = 0.9995  # the cosine beyond which the peer interpolates linearly; recipes rely on its results
SOURCE = "Animating rotation with quaternion curves (SIGGRAPH 1985, doi 10.1145/325334.325242)"


@merge_method(
    "slerp",
    summary="blend two models along the arc between them",
    formula=(
        "sin((1-t) theta)/sin(theta) a + sin(t theta)/sin(theta) b, theta the angle between a (base) and b; "
        "(1-t) a + t b where abs(cos(theta)) > 0.9995"
    ),
    source=SOURCE,
    base=Base.FIRST,
    min_inputs=2,
    max_inputs=2,
    parameters=(Parameter(name="t", kind=float, help="0 is the base model, 1 the other one"),),
    passes=1,
    in_place=True,
    passes_lone_tensor_through=True,
    example={"t": 0.5},
)
def slerp(inputs: Inputs) -> Combine:
    c = cosine(gram_matrix(inputs, deltas=False), 0, 1)
    return combine_linearly(arc_coefficients(c, inputs.shared["t"], nearly_parallel=abs(c) > NEARLY_PARALLEL))
