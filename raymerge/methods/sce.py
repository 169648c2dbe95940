"""SCE: select the changes that vary most between models, calculate weights from them, erase minority signs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from raymerge.compute.operations import Mask
from raymerge.compute.selection import Pair, TopKeeper, find_thresholds
from raymerge.compute.sums import PairwiseSum
from raymerge.methods.declaration import Array, Base, Combine, Parameter, merge_method
from raymerge.methods.inputs import Block, Inputs
from raymerge.methods.state import tables

Select = Callable[[Block], Mask]  # one mask for all inputs; blocks come in element order


@merge_method(
    "sce",
    summary="keep the changes that vary most between models, weight models by their size, drop minority signs",
    formula=(
        "b + sum w_i d_i / sum w_i over the i whose d_i has the sign of sum d_i; d_i: the select_topk share of the "
        "entries of x_i - b with the largest variance over the models, of those where it is not 0; w_i: mean square of "
        "d_i, normalized"
    ),
    source="FuseChat (arXiv 2408.07990)",
    base=Base.REQUIRED,
    parameters=(
        Parameter(
            name="select_topk", kind=float, default=1.0, is_share=True, help="share of the positions kept; 1: all"
        ),
    ),
    passes=6,
    state=tables(more=1),
    accepted_without_effect=("int8_mask",),
)
def sce(inputs: Inputs) -> Combine:
    open_selection = _select(inputs, inputs.shared["select_topk"])
    weights = _weights(inputs, open_selection())
    select = open_selection()

    def combine(block: Block) -> Array:
        masks = [select(block)] * inputs.count
        return block.operations.elect(
            block.x, block.base, masks, [1.0] * inputs.count, weights, gains=weights, out=block.out
        )

    return combine


def _select(inputs: Inputs, share: float) -> Callable[[], Select]:
    if share >= 1:
        return lambda: lambda _block: None
    varying = sum(
        block.count - block.operations.count_equal(block.operations.spread(block.x), None, 0.0)
        for block in inputs.scan()
    )
    count = int(share * varying)
    if count <= 0:
        return lambda: lambda block: block.operations.no_mask(block.count)

    def spreads(sample: bool) -> Iterator[Sequence[Pair]]:
        for block in inputs.scan_to_count(sample=True) if sample else inputs.scan():  # spreads are arrays
            yield [(block.operations.spread(block.x), None)]

    (threshold,) = find_thresholds(inputs.operations, spreads, [(0, count)], inputs.element_count)

    def open_selection() -> Select:
        keeper = TopKeeper(threshold)
        return lambda block: keeper.mask(block.operations, block.operations.spread(block.x), None)

    return open_selection


def _weights(inputs: Inputs, select: Select) -> list[float]:
    """Each input's share of the kept changes' squares; equal shares where all are 0."""
    sums = [PairwiseSum() for _ in range(inputs.count)]
    for block in inputs.scan():
        mask = select(block)
        for total, x in zip(sums, block.x, strict=True):
            total.add(block.operations.chunk_sums(x, block.base, mask, squared=True))
    squares = [float(total.total()) for total in sums]
    whole = sum(squares)
    return [square / whole if whole > 0 else 1 / inputs.count for square in squares]
