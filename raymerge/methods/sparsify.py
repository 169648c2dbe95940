"""Which entries of each task vector are kept, and the scale that makes up for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod

from raymerge.compute.operations import Limit, Mask, PackedMask
from raymerge.compute.random_bits import keep_limit
from raymerge.compute.selection import OpenBlocks, Pair, Threshold, TopKeeper, find_thresholds, kept_count
from raymerge.compute.sums import CHUNK_ELEMENTS, PairwiseSum
from raymerge.methods.declaration import Array, Combine, Parameter, Values
from raymerge.methods.inputs import Block, Inputs
from raymerge.methods.linear import delta_divisor
from raymerge.methods.trim_scope import given_thresholds

DENSITY = Parameter(
    name="density", kind=float, default=1.0, per_input=True, is_share=True, help="share of the changes kept"
)
RESCALE_MODE = Parameter(
    name="rescale_mode",
    kind=str,
    default="l1",
    choices=("l1", "density"),
    help="rescale to the L1 norm before, or by 1 / density, which keeps the expected change",
)


MOST_MASK_BYTES = 16 << 20  # twice as much would not fit the least task memory beside a store's upload

Keeper = Callable[[Block, int], Mask]  # the mask of one input in a block; blocks come in element order
OpenKeepers = Callable[[], Sequence[Keeper]]  # keepers carry state along one scan: open new ones for each


def rescale(default: bool) -> Parameter:
    return Parameter(name="rescale", kind=bool, default=default, help="scale up what is kept to make up for the rest")


def block_pairs(inputs: Inputs) -> OpenBlocks:
    def open_blocks(sample: bool) -> Iterator[Sequence[Pair]]:
        for block in inputs.scan_to_count(sample=sample):
            yield [(x, block.base) for x in block.x]

    return open_blocks


def keep_largest(inputs: Inputs) -> OpenKeepers:
    """Keep the floor(density * n) largest changes of each input, at least one; none for a density of 0 or less.

    Where they end is searched for, unless a first phase over the whole model handed it in.
    """
    n = inputs.element_count
    counts = [kept_count(density, n) for density in inputs.parameter("density")]
    found = given_thresholds(inputs)
    if found is None:
        wanted = [(i, count) for i, count in enumerate(counts) if 0 < count < n]
        ends = find_thresholds(inputs.operations, block_pairs(inputs), wanted, n)
        found = {i: end for (i, _), end in zip(wanted, ends, strict=True)}

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
        return keeper.keep(block.operations, block.x[i], block.base)

    return keep


def keep_band(inputs: Inputs) -> OpenKeepers:
    """Keep the floor(density * n) changes next below the floor(gamma * n) largest, or else the smallest ones.

    One order serves both ends: by magnitude from the largest, among equals by element index.
    """
    n = inputs.element_count
    bands = [
        _band(density, gamma, n)
        for density, gamma in zip(inputs.parameter("density"), inputs.parameter("gamma"), strict=True)
    ]
    wanted = [(i, place) for i, band in enumerate(bands) for place in band if 0 < place < n and band[0] < band[1]]
    found = dict(zip(wanted, find_thresholds(inputs.operations, block_pairs(inputs), wanted, n), strict=True))

    def open_keepers() -> Sequence[Keeper]:
        return [
            _keep_between(found.get((i, first)), found.get((i, last))) if first < last else _keep_none
            for i, (first, last) in enumerate(bands)
        ]

    return open_keepers


def _band(density: float, gamma: float, n: int) -> tuple[int, int]:
    """[first, last) of what is kept, in places from the largest change down."""
    kept = max(0, min(n, int(density * n)))
    first = min(max(0, int(gamma * n)), n - kept)
    return first, first + kept


def _keep_between(dropped: Threshold | None, kept: Threshold | None) -> Keeper:
    if dropped is None:
        return _keep_top(kept) if kept else _keep_all
    inner, outer = TopKeeper(dropped), TopKeeper(kept) if kept else None

    def keep(block: Block, i: int) -> Mask:
        operations, place = block.operations, (block.x[i], block.base)
        within = outer.keep(operations, *place) if outer else Limit(threshold=0.0, inclusive=True)
        without = inner.keep(operations, *place)
        if isinstance(within, Limit) and isinstance(without, Limit):
            return replace(within, below=without)
        written = [operations.write_mask(e, *place) if isinstance(e, Limit) else e for e in (within, without)]
        return operations.mask_difference(*written)

    return keep


def keep_by_rank(inputs: Inputs) -> OpenKeepers:
    """Keep each change with probability density - epsilon + 2 epsilon rank, by its rank within its row.

    The masks that a pass for scales makes are kept for the one that combines, as far as their bound allows.
    """
    room = _mask_room(inputs)
    keepers = [
        _keep_ranked(inputs, i, density, epsilon, room) if density < 1 else _keep_all
        for i, (density, epsilon) in enumerate(
            zip(inputs.parameter("density"), inputs.parameter("epsilon"), strict=True)
        )
    ]
    return lambda: keepers


def mask_state(shape: tuple[int, ...], shared: Values, count: int) -> int:
    """Most bytes of masks that are kept between passes: a bit for each element of each input, up to a bound.

    Where masks take more than bits, fewer are kept.
    """
    nbytes = min(count * -(-prod(shape) // 8), MOST_MASK_BYTES)
    return nbytes if shared["rescale"] and shared["rescale_mode"] == "l1" else 0


def _mask_room(inputs: Inputs) -> int:
    """The bytes for one input's."""
    return mask_state(inputs.shape, inputs.shared, inputs.count) // inputs.count


def _keep_ranked(inputs: Inputs, i: int, density: float, epsilon: float, room: int) -> Keeper:
    limits = inputs.operations.rank_limits(density, epsilon, inputs.row_length)
    made: dict[tuple[int, int], Mask] = {}  # by the block's first element and how many it has
    left = room
    end = 0  # of what a pass for scales has seen: that pass comes first, and is where norms are asked for

    def keep(block: Block, _i: int) -> Mask:
        nonlocal left, end
        if (place := (block.start, block.count)) in made:
            return made.pop(place)
        mask = block.operations.rank_mask(
            block.x[i],
            block.base,
            limits,
            key=inputs.keys[i],
            start=block.start,
            norms=room > 0 and block.start >= end,
        )
        end = max(end, block.start + block.count)
        if mask.nbytes <= left:
            made[place] = replace(mask, norms=None) if isinstance(mask, PackedMask) else mask
            left -= mask.nbytes
        return mask

    return keep


def keep_random(inputs: Inputs) -> OpenKeepers:
    """Keep each change with probability `density`, by the bits of its input's stream.

    What a pass for scales draws is kept for the one that combines, as far as the bound of masks allows.
    """
    room = min(inputs.element_count, 8 * _mask_room(inputs))
    keepers = [
        _keep_drawn(key, density, inputs.operations.room_to_keep(room) if room else None, room)
        if density < 1
        else _keep_all
        for key, density in zip(inputs.keys, inputs.parameter("density"), strict=True)
    ]
    return lambda: keepers


def _keep_drawn(key: int, density: float, kept: PackedMask | None, room: int) -> Keeper:
    """`room` is how many elements' bits can be `kept`, from the first on: a pass for scales comes before any other."""
    limit = keep_limit(density)
    end = 0  # of what is kept
    is_full = kept is None

    def keep(block: Block, _i: int) -> Mask:
        nonlocal end, is_full
        stop = block.start + block.count
        if kept is not None and stop <= end:
            return kept.part(block.start, block.count)
        is_full = is_full or stop > room
        if kept is None or is_full:
            return block.operations.draw(key, block.start, block.count, limit)
        end = stop
        return block.operations.draw(key, block.start, block.count, limit, kept.part(block.start, block.count))

    return keep


def scales(inputs: Inputs, open_keepers: OpenKeepers, *, rows: bool = False) -> list[float]:
    """What kept changes are multiplied by: 1 unless `rescale` is set, else as `rescale_mode` says.

    "l1" is L1(d_i) / L1(kept part of d_i), 0 where nothing is kept, and takes a pass; "density" is 1 / density.
    `rows`: the keepers need blocks of whole rows.
    """
    densities = inputs.parameter("density")
    if not inputs.shared["rescale"] or all(density >= 1 for density in densities):
        return [1.0] * inputs.count
    if inputs.shared["rescale_mode"] == "density":
        return [1 / min(density, 1.0) if density > 0 else 0.0 for density in densities]
    return _l1_scales(inputs, open_keepers(), rows=rows)


def _l1_scales(inputs: Inputs, keepers: Sequence[Keeper], *, rows: bool) -> list[float]:
    norms = PairwiseSum()
    chunk = inputs.row_length if rows else CHUNK_ELEMENTS
    for block in inputs.scan(rows=True) if rows else inputs.scan_to_count():
        masks = [keeper(block, i) for i, keeper in enumerate(keepers)]
        norms.add(block.operations.chunk_norms(block.x, block.base, masks, chunk))
    totals = norms.total()
    return [_ratio(*pair) for pair in totals.tolist()] if totals.ndim else [0.0] * inputs.count


def _ratio(whole: float, kept: float) -> float:
    return whole / kept if kept > 0 else 0.0


def add(inputs: Inputs, keepers: Sequence[Keeper], scales: Sequence[float]) -> Combine:
    """Combine by adding: kept entries times their weight and scale, over the sum of the weights if `normalize`."""
    factor = inputs.shared["lambda"] / delta_divisor(inputs)
    coefficients = [weight * scale for weight, scale in zip(inputs.parameter("weight"), scales, strict=True)]

    def combine(block: Block) -> Array:
        masks = [keeper(block, i) for i, keeper in enumerate(keepers)]
        return block.operations.masked_sum(block.x, block.base, masks, coefficients, factor, out=block.out)

    return combine
