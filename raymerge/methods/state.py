"""How much memory methods keep through a tensor beside blocks: what they declare as `state`, for the plan to count."""

from __future__ import annotations

from math import prod

from raymerge.compute.selection import MOST_BINS
from raymerge.methods.declaration import State, Values

_READ_BYTES = 8  # an entry of the one table that is read out at a time


def tables(*, per_input: int = 0, more: int = 0) -> State:
    """Tables of exact selection, one for each threshold that is looked for at a time."""

    def state(shape: tuple[int, ...], _shared: Values, count: int) -> int:
        entry = 4 if prod(shape) < 1 << 31 else 8
        return MOST_BINS * (entry * (per_input * count + more) + _READ_BYTES)

    return state


def row_count(shape: tuple[int, ...]) -> int:
    return prod(shape[:-1])
