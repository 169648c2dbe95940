"""Model Stock: as far from the base towards the mean as the fine-tuned models agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.gram import Matrix, combine_linearly, cosine, gram_matrix
from raymerge.methods.inputs import Block, Inputs

NO_ANGLE = 1e-6


@merge_method(
    "model_stock",
    summary="move from the base towards the models' mean as far as their changes point the same way",
    formula=(
        "t mean(x_i) + (1-t) b, t = N c/(1 + (N-1) c), c the mean cosine between pairs of x_i - b; "
        "b where that denominator is below 1e-6"
    ),
    source="Model Stock (arXiv 2403.19522)",
    base=Base.REQUIRED,
    min_inputs=2,
    parameters=(Parameter(name="filter_wise", kind=bool, default=False, help="one t for each row"),),
    passes=1,
    rows=True,
    rows_when=lambda shared: bool(shared["filter_wise"]),
)
def model_stock(inputs: Inputs) -> Combine:
    if inputs.shared["filter_wise"]:
        return _by_row(inputs)
    t = _share(gram_matrix(inputs, deltas=True))
    return combine_linearly([t / inputs.count] * inputs.count, 1 - t)


def _share(gram: Matrix) -> float:
    pairs = list(combinations(range(len(gram)), 2))
    c = sum(cosine(gram, i, j) for i, j in pairs) / len(pairs)
    denominator = 1 + (len(gram) - 1) * c
    return len(gram) * c / denominator if denominator >= NO_ANGLE else 0.0


def _by_row(inputs: Inputs) -> Combine:
    length = inputs.row_length

    def combine(block: Block) -> Array:
        operations = block.operations
        shares: Sequence[float] = [_share(gram) for gram in operations.chunk_gram(block.x, block.base, length).tolist()]
        of_mean = operations.repeat([t / inputs.count for t in shares], length)
        of_base = operations.repeat([1 - t for t in shares], length)
        return operations.weighted_sum_by([of_base, *[of_mean] * inputs.count], [block.base, *block.x])

    return combine
