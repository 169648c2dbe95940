"""Counter-based randomness: one bit pattern for each (stream, element index), whatever computes it and in which order.

A stream belongs to one input of one output tensor. The highest 16 bits of element e are the 16 bits from 16 * (e % 4)
of output e // 4 of the SplitMix64 generator seeded with `key` (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, OOPSLA 2014): they settle nearly every draw, at a quarter of its cost. The other 48 are the highest of
output e of a second such generator, whose seed is the first one's output before its first.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK_64 = (1 << 64) - 1
LOW_BITS = 48  # of an element's 64: those below the ones that it shares an output for with three others


def stream_key(seed: int, slot: int, tensor_name: str) -> int:
    """The 64-bit key of an input's stream. `slot` counts the non-base inputs, so listing the base changes nothing."""
    text = f"{seed}\x00{slot}\x00{tensor_name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"raymerge").digest(), "little")


def element_bits(key: int, index: int) -> int:
    """The 64 random bits of one element: the definition that the kernels follow."""
    high = splitmix(key, index // 4) >> 16 * (index % 4) & 0xFFFF
    return high << LOW_BITS | splitmix(splitmix(key, -1), index) >> 16


def splitmix(seed: int, index: int) -> int:
    """Output `index`, from 0, of the SplitMix64 generator with this seed."""
    z = (seed + (index + 1) * GOLDEN) & MASK_64
    z = ((z ^ (z >> 30)) * MIX_1) & MASK_64
    z = ((z ^ (z >> 27)) * MIX_2) & MASK_64
    return z ^ (z >> 31)


def keep_limit(density: float) -> int:
    """An element is kept where its bits lie below this: round(density * 2^64), exactly; 2^64 keeps every element."""
    if density >= 1:
        return 1 << 64
    if density > 0:
        return round(density * 2.0**64)
    return 0


def rank_limits(density: float, epsilon: float, row_length: int) -> NDArray[np.uint64]:
    """keep_limit(density - epsilon + 2 epsilon rank) by place in a row: rank 1 at place 0, 0 at the last or only one.

    The probabilities are IEEE doubles inside (0, 1); times 2^64 they are exact.
    """
    import numpy as np

    ranks = 1 - np.arange(row_length) / (row_length - 1) if row_length > 1 else np.zeros(row_length)
    return np.rint((density - epsilon + 2 * epsilon * ranks) * 2.0**64).astype(np.uint64)
