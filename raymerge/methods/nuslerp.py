"""Spherical interpolation by weights: of models or of their task vectors, whole or row by row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from math import prod

from raymerge.methods.declaration import Array, Base, Combine, Parameter, Values, merge_method
from raymerge.methods.gram import Matrix, add_deltas, arc_coefficients, cosine, exact_sum, gram_matrix
from raymerge.methods.inputs import Block, Inputs
from raymerge.methods.linear import WEIGHT
from raymerge.methods.slerp import SOURCE

PARALLEL_SINE_SQUARED = 1e-16
NO_WEIGHT = 1e-6
COLUMNS_AT_A_TIME = 4096  # numbers as Python objects take four times their bytes


def _is_by_row(shared: Values) -> bool:
    return not shared["nuslerp_flatten"] and not shared["nuslerp_row_wise"]


def _state(shape: tuple[int, ...], shared: Values, _count: int) -> int:
    """By column: three sums and three coefficients for each."""
    if shared["nuslerp_flatten"] or not shared["nuslerp_row_wise"] or len(shape) < 2:
        return 0
    return 2 * 3 * 8 * prod(shape[1:])


@merge_method(
    "nuslerp",
    summary="blend two models, or their changes to a base, along the arc between them",
    formula=(
        "slerp of x_1 and x_2 (with a base: b + slerp of x_1 - b and x_2 - b) at t = w_2/(w_1 + w_2), 0.5 where "
        "abs(w_1 + w_2) < 1e-6; linear where 1 - cos^2 <= 1e-16"
    ),
    source=SOURCE,
    base=Base.OPTIONAL,
    min_inputs=2,
    max_inputs=2,
    parameters=(
        WEIGHT,
        Parameter(name="nuslerp_flatten", kind=bool, default=True, help="one angle for the tensor, not one per vector"),
        Parameter(
            name="nuslerp_row_wise",
            kind=bool,
            default=False,
            help="without flatten: vectors along the first dimension, not along the last",
        ),
    ),
    passes=1,
    rows=True,
    rows_when=_is_by_row,
    state=_state,
    passes_lone_tensor_through=True,
    example={"weight": [0.6, 0.4]},
)
def nuslerp(inputs: Inputs) -> Combine:
    t = share_of_second(inputs.parameter("weight"))
    if inputs.shared["nuslerp_flatten"] or len(inputs.shape) < 2:
        return add_deltas(inputs, _coefficients(gram_matrix(inputs, deltas=True), t))
    return _by_column(inputs, t) if inputs.shared["nuslerp_row_wise"] else _by_row(inputs, t)


def share_of_second(weights: Sequence[float]) -> float:
    """w_2/(w_1 + w_2), or one half where the weights cancel."""
    total = weights[0] + weights[1]
    return weights[1] / total if abs(total) >= NO_WEIGHT else 0.5


def _coefficients(gram: Matrix, t: float) -> list[float]:
    c = cosine(gram, 0, 1)
    return arc_coefficients(c, t, nearly_parallel=1 - c * c <= PARALLEL_SINE_SQUARED)


def _with_base(coefficients: Sequence[float]) -> list[float]:
    return [*coefficients, exact_sum([1.0, *(-c for c in coefficients)])]


def _arrays(block: Block) -> list[Array]:
    return [*block.x] if block.base is None else [*block.x, block.base]


def _by_row(inputs: Inputs, t: float) -> Combine:
    length = inputs.row_length

    def combine(block: Block) -> Array:
        operations = block.operations
        grams = operations.chunk_gram(block.x, block.base, length).tolist()
        columns = zip(*(_with_base(_coefficients(gram, t)) for gram in grams), strict=True)
        arrays = _arrays(block)
        by_element = [operations.repeat(column, length) for column in columns]
        return operations.weighted_sum_by(by_element[: len(arrays)], arrays)

    return combine


def _by_column(inputs: Inputs, t: float) -> Combine:
    width = inputs.element_count // max(1, inputs.shape[0])
    totals = {pair: inputs.operations.cycle([0.0], 0, width) for pair in ((0, 0), (0, 1), (1, 1))}
    for block in inputs.scan():
        for (i, j), total in totals.items():
            products = block.operations.delta_products(block.x[i], block.x[j], block.base)
            for column, first, last in _segments(block, width):
                total[column : column + last - first] += products[first:last]
    columns = [array("d"), array("d"), array("d")]
    for first in range(0, width, COLUMNS_AT_A_TIME):
        sums = (totals[pair][first : first + COLUMNS_AT_A_TIME].tolist() for pair in ((0, 0), (0, 1), (1, 1)))
        for aa, ab, bb in zip(*sums, strict=True):
            for values, coefficient in zip(columns, _with_base(_coefficients([[aa, ab], [ab, bb]], t)), strict=True):
                values.append(coefficient)
    totals.clear()

    def combine(block: Block) -> Array:
        operations, arrays = block.operations, _arrays(block)
        by_element = [operations.cycle(column, block.start, block.count) for column in columns[: len(arrays)]]
        return operations.weighted_sum_by(by_element, arrays)

    return combine


def _segments(block: Block, width: int) -> Iterator[tuple[int, int, int]]:
    """Stretches of the block that lie in one row of `width`: (first column, first, last)."""
    first = 0
    while first < block.count:
        column = (block.start + first) % width
        last = min(block.count, first + width - column)
        yield column, first, last
        first = last
