"""Arcee Fusion: take over only the changes that stand out."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from math import floor

from raymerge.compute.selection import OpenBlocks, Pair, find_thresholds
from raymerge.methods.declaration import Array, Base, Combine, Values, merge_method
from raymerge.methods.inputs import Block, Inputs
from raymerge.methods.state import row_count, tables

OUTLIER_RANGE = 1.5  # of the interquartile range, above the median

_tables = tables(more=3)  # one for each quartile


def _state(shape: tuple[int, ...], shared: Values, count: int) -> int:
    """A divergence for each row, in a list that grows."""
    return _tables(shape, shared, count) + 2 * 8 * row_count(shape)


@merge_method(
    "arcee_fusion",
    device_bound=True,
    summary="take over the other model's entries where their importance stands out, keep the base's elsewhere",
    formula=(
        "x where I >= median(I) + 1.5 (q75(I) - q25(I)), else b; I = abs(x - b) * KL(softmax(x), softmax(b)) of its row"
    ),
    source="Arcee Fusion (arcee.ai documentation of its merge toolkit)",
    base=Base.REQUIRED,
    min_inputs=1,
    max_inputs=1,
    passes=5,
    rows=True,
    state=_state,
)
def arcee_fusion(inputs: Inputs) -> Combine:
    length = inputs.row_length
    factors = array("d")
    for block in inputs.scan(rows=True):
        factors.extend(block.operations.row_divergences(block.x[0], block.base, length))

    def importance(block: Block) -> Array:
        rows = factors[block.start // length : (block.start + block.count) // length]
        return block.operations.row_scaled_magnitudes(block.x[0], block.base, rows, length)

    def importances(_sample: bool) -> Iterator[Sequence[Pair]]:  # needs whole rows: everything is the sample
        for block in inputs.scan(rows=True):
            yield [(importance(block), None)]

    if inputs.element_count == 0:
        return lambda block: block.base
    low, middle, high = _quantiles(inputs, importances, (0.25, 0.5, 0.75))
    threshold = middle + OUTLIER_RANGE * (high - low)

    def combine(block: Block) -> Array:
        mask = block.operations.top_mask(importance(block), None, threshold, block.count)
        return block.operations.masked_sum(block.x, block.base, [mask], [1.0], out=block.out)

    return combine


def _quantiles(inputs: Inputs, open_blocks: OpenBlocks, shares: Sequence[float]) -> list[float]:
    """The values at places floor(share * (n - 1)) of their order."""
    n = inputs.element_count
    ranks = [n - floor(share * (n - 1)) for share in shares]  # from the largest, which is rank 1
    return [found.value for found in find_thresholds(inputs.operations, open_blocks, [(0, rank) for rank in ranks], n)]
