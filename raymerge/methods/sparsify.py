"""Which entries of each task vector are kept, and the scale that makes up for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from raymerge.compute.operations import Mask
from raymerge.compute.selection import Pair, Threshold, TopKeeper, find_thresholds, kept_count
from raymerge.compute.sums import PairwiseSum
from raymerge.methods.inputs import Block, Inputs

Keeper = Callable[[Block, int], Mask]  # the mask of one input in a block; blocks come in element order
OpenKeepers = Callable[[], Sequence[Keeper]]  # keepers carry state along one scan: open new ones for each


def block_pairs(inputs: Inputs) -> Callable[[], Iterator[Sequence[Pair]]]:
    def open_blocks() -> Iterator[Sequence[Pair]]:
        for block in inputs.scan():
            yield [(x, block.base) for x in block.x]

    return open_blocks


def keep_largest(inputs: Inputs) -> OpenKeepers:
    """Keep the floor(density * n) largest changes of each input, at least one; none for a density of 0 or less."""
    n = inputs.element_count
    counts = [kept_count(density, n) for density in inputs.parameter("density")]
    wanted = [(i, count) for i, count in enumerate(counts) if 0 < count < n]
    found = dict(
        zip((i for i, _ in wanted), find_thresholds(inputs.operations, block_pairs(inputs), wanted), strict=True)
    )

    def open_keepers() -> Sequence[Keeper]:
        return [
            _keep_top(found[i]) if i in found else _keep_all if count else _keep_none for i, count in enumerate(counts)
        ]

    return open_keepers


def _keep_all(_block: Block, _i: int) -> Mask:
    return None


def _keep_none(block: Block, _i: int) -> Mask:
    return block.operations.no_mask(block.count)


def _keep_top(threshold: Threshold) -> Keeper:
    keeper = TopKeeper(threshold)

    def keep(block: Block, i: int) -> Mask:
        return keeper.mask(block.operations, block.x[i], block.base)

    return keep


def l1_scales(inputs: Inputs, open_keepers: OpenKeepers) -> list[float]:
    """L1(d_i) / L1(kept entries of d_i); 0 where nothing is kept."""
    sums = [(PairwiseSum(), PairwiseSum()) for _ in range(inputs.count)]
    keepers = open_keepers()
    for block in inputs.scan():
        for i, (all_entries, kept_entries) in enumerate(sums):
            mask = keepers[i](block, i)
            all_entries.add(block.operations.chunk_absolute_sums(block.x[i], block.base, None))
            kept_entries.add(block.operations.chunk_absolute_sums(block.x[i], block.base, mask))
    return [_ratio(float(all_entries.total()), float(kept.total())) for all_entries, kept in sums]


def _ratio(whole: float, kept: float) -> float:
    return whole / kept if kept > 0 else 0.0
