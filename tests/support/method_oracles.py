"""Every method's formula once more, in whole-tensor float64 numpy.

Shared with the code under test are only the rule for equal magnitudes (lowest element index first), what counts as zero
but for rounding, and the definition of the random bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import numpy as np

from raymerge.compute.random_bits import element_bits, keep_limit, stream_key

Arrays = Sequence[np.ndarray]


def wide(arrays: Arrays) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def deltas(x: Arrays, base: np.ndarray) -> list[np.ndarray]:
    return [each - base.astype(np.float64) for each in wide(x)]


def order(x: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Element indices from the largest change to the smallest, among equals in index order."""
    return np.argsort(-np.abs(x - base).reshape(-1), kind="stable")  # in the type the changes are stored in


def linear(x: Arrays, weight: Sequence[float], normalize: bool = True) -> np.ndarray:
    total = sum(w * each for w, each in zip(weight, wide(x), strict=True))
    return total / sum(weight) if normalize else total


def task_arithmetic(
    x: Arrays, base: np.ndarray, weight: Sequence[float], normalize: bool = False, lam: float = 1.0
) -> np.ndarray:
    return base.astype(np.float64) + lam * linear(deltas(x, base), weight, normalize)


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    a, b = wide([a, b])
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    c = np.sum(a * b) / norms if norms > 0 else 0.0
    if abs(c) > 0.9995:
        return (1 - t) * a + t * b
    theta = np.arccos(c)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def top_masks(x: Arrays, base: np.ndarray, density: Sequence[float]) -> list[np.ndarray]:
    masks = []
    for each, share in zip(x, density, strict=True):
        count = max(1, min(each.size, floor(share * each.size))) if share > 0 else 0
        mask = np.zeros(each.size)
        mask[order(each, base)[:count]] = 1
        masks.append(mask.reshape(each.shape))
    return masks


def random_masks(x: Arrays, density: Sequence[float], seed: int = 0, tensor: str = "w") -> list[np.ndarray]:
    masks = []
    for slot, (each, share) in enumerate(zip(x, density, strict=True)):
        key, limit = stream_key(seed, slot, tensor), keep_limit(share)
        mask = np.array([element_bits(key, e) < limit for e in range(each.size)], np.float64)
        masks.append(mask.reshape(each.shape))
    return masks


def l1_rescaled(kept: Arrays, full: Arrays) -> list[np.ndarray]:
    norms = [(np.abs(k).sum(), np.abs(d).sum()) for k, d in zip(kept, full, strict=True)]
    return [k * (whole / part if part > 0 else 0.0) for k, (part, whole) in zip(kept, norms, strict=True)]


def elect(kept: Arrays, weight: Sequence[float], normalize: bool, consensus: str = "sum") -> np.ndarray:
    terms = np.stack([w * d for w, d in zip(weight, kept, strict=True)])
    votes = terms if consensus == "sum" else np.sign(terms)
    total = votes.sum(0)
    total[np.abs(total) < 2.0**-48 * np.abs(votes).sum(0)] = 0  # zero but for rounding
    agrees = np.sign(terms) == np.where(total >= 0, 1, -1)
    merged = (terms * agrees).sum(0)
    if not normalize:
        return merged
    share = (np.array(weight).reshape(-1, *[1] * kept[0].ndim) * agrees).sum(0)
    share[np.abs(share) < 1e-12] = 1  # 0 but for rounding
    return merged / share


def ties(
    x: Arrays,
    base: np.ndarray,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    lam: float = 1.0,
    consensus: str = "sum",
) -> np.ndarray:
    d = deltas(x, base)
    kept = [mask * each for mask, each in zip(top_masks(x, base, density), d, strict=True)]
    kept = l1_rescaled(kept, d) if rescale else kept
    return base.astype(np.float64) + lam * elect(kept, weight, normalize, consensus)


def dare(
    x: Arrays,
    base: np.ndarray,
    weight: Sequence[float],
    density: Sequence[float],
    *,
    signs: bool,
    normalize: bool = False,
    rescale: bool = True,
    rescale_mode: str = "l1",
    lam: float = 1.0,
) -> np.ndarray:
    d = deltas(x, base)
    kept = [mask * each for mask, each in zip(random_masks(x, density), d, strict=True)]
    if rescale and rescale_mode == "l1":
        kept = l1_rescaled(kept, d)
    elif rescale:
        kept = [k / min(p, 1) for k, p in zip(kept, density, strict=True)]
    merged = elect(kept, weight, normalize) if signs else linear(kept, weight, normalize)
    return base.astype(np.float64) + lam * merged
