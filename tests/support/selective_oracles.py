"""Formulas of the methods that choose entries one by one, in whole-tensor float64."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import numpy as np
from method_oracles import Arrays, deltas, elect, l1_rescaled, linear, order, wide

from raymerge.compute.random_bits import element_bits, keep_limit, stream_key


def band_masks(x: Arrays, base: np.ndarray, density: Sequence[float], gamma: Sequence[float]) -> list[np.ndarray]:
    masks = []
    for each, share, dropped in zip(x, density, gamma, strict=True):
        n = each.size
        kept, first = min(n, floor(share * n)), floor(dropped * n)
        first = n - kept if n - first < kept else first
        mask = np.zeros(n)
        mask[order(each, base)[first : first + kept]] = 1
        masks.append(mask.reshape(each.shape))
    return masks


def breadcrumbs(
    x: Arrays,
    base: np.ndarray,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    *,
    signs: bool,
    normalize: bool = False,
    rescale: bool = False,
) -> np.ndarray:
    d = deltas(x, base)
    kept = [mask * each for mask, each in zip(band_masks(x, base, density, gamma), d, strict=True)]
    kept = l1_rescaled(kept, d) if rescale else kept
    merged = elect(kept, weight, normalize) if signs else linear(kept, weight, normalize)
    return base.astype(np.float64) + merged


def rank_masks(
    x: Arrays, base: np.ndarray, density: Sequence[float], epsilon: Sequence[float], seed: int = 0
) -> list[np.ndarray]:
    masks = []
    length = base.shape[-1] if base.ndim else 1
    for slot, (each, share, eps) in enumerate(zip(x, density, epsilon, strict=True)):
        key = stream_key(seed, slot, "w")
        mask = np.zeros(each.size)
        for r, (row, base_row) in enumerate(zip(each.reshape(-1, length), base.reshape(-1, length), strict=True)):
            for place, j in enumerate(order(row, base_row)):
                rank = 1 - place / (length - 1) if length > 1 else 0.0
                e = r * length + int(j)
                mask[e] = element_bits(key, e) < keep_limit(share - eps + 2 * eps * rank)
        masks.append(mask.reshape(each.shape))
    return masks


def della(
    x: Arrays,
    base: np.ndarray,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    *,
    signs: bool,
    normalize: bool,
    rescale: bool = True,
    rescale_mode: str = "l1",
    lam: float = 1.0,
) -> np.ndarray:
    d = deltas(x, base)
    kept = [mask * each for mask, each in zip(rank_masks(x, base, density, epsilon), d, strict=True)]
    if rescale and rescale_mode == "l1":
        kept = l1_rescaled(kept, d)
    elif rescale:
        kept = [k / p for k, p in zip(kept, density, strict=True)]
    merged = elect(kept, weight, normalize) if signs else linear(kept, weight, normalize)
    return base.astype(np.float64) + lam * merged


def sce(x: Arrays, base: np.ndarray, select_topk: float = 1.0) -> np.ndarray:
    d = np.stack(deltas(x, base))
    if select_topk < 1:
        exact = np.stack(wide(x)) - x[0]  # the base and the first input cancel in a variance
        spread = np.sqrt(np.mean((exact - exact.mean(0)) ** 2, axis=0)).astype(x[0].dtype).reshape(-1)
        kept = floor(select_topk * np.count_nonzero(spread))
        mask = np.zeros(spread.size)
        mask[np.argsort(-spread, kind="stable")[:kept]] = 1
        d = d * mask.reshape(base.shape)
    squares = np.mean(d.reshape(len(d), -1) ** 2, axis=1)
    w = squares / squares.sum() if squares.sum() > 0 else np.full(len(d), 1 / len(d))
    w = w.reshape(-1, *[1] * base.ndim)
    agrees = np.sign(d) == np.where(d.sum(0) >= 0, 1, -1)
    share = (w * agrees).sum(0)
    return base + (w * d * agrees).sum(0) / np.where(share == 0, 1, share)


def nearswap(x: np.ndarray, base: np.ndarray, t: float) -> np.ndarray:
    a, b = wide([base, x])
    return a + np.clip(t / np.maximum(np.abs(a - b), 1e-6), 0, 1) * (b - a)


def arcee_fusion(x: np.ndarray, base: np.ndarray) -> np.ndarray:
    a, b = wide([x, base])
    p, q = softmax(a) + 1e-8, softmax(b) + 1e-8
    importance = (np.abs(a - b) * (p * np.log(p / q)).sum(-1, keepdims=True)).astype(x.dtype)
    low, middle, high = np.quantile(importance.astype(np.float64), [0.25, 0.5, 0.75], method="lower")
    return np.where(importance >= middle + 1.5 * (high - low), a, b)


def softmax(rows: np.ndarray) -> np.ndarray:
    terms = np.exp(rows - rows.max(-1, keepdims=True))
    return terms / terms.sum(-1, keepdims=True)


def ram(x: Arrays, base: np.ndarray, epsilon: float = 1e-5, gains: Sequence[float] | None = None) -> np.ndarray:
    d = np.stack(deltas(x, base))
    active = np.abs(d) > epsilon
    number = active.sum(0)
    gain = np.ones(len(x)) if gains is None else np.array(gains)
    scaled = np.where(number == 1, d * gain.reshape(-1, *[1] * base.ndim), d)
    return base + (scaled * active).sum(0) / np.maximum(number, 1)


def ramplus_tl(x: Arrays, base: np.ndarray, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> np.ndarray:
    active = np.abs(np.stack(deltas(x, base))) > epsilon
    number = active.sum(0)
    gains = []
    for each in active:
        shared, unique = np.sum(each & (number > 1)), np.sum(each & (number == 1))
        gains.append(1 + r * np.clip(shared / unique if unique else 0.0, 0, alpha))
    return ram(x, base, epsilon, gains)
