"""Formulas of the methods that work by angles and norms, in whole-tensor float64, vector by vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from method_oracles import Arrays, deltas, wide


def angle_cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    c = np.sum(a * b) / norms if norms > 0 else 0.0
    return float(c if abs(c) < 1 - 2.0**-50 else np.sign(c))


def arc(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    c = angle_cosine(a, b)
    if 1 - c * c <= 1e-16:
        return (1 - t) * a + t * b
    theta = np.arccos(c)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def nuslerp(
    x: Arrays, base: np.ndarray | None, weight: Sequence[float], *, flatten: bool = True, row_wise: bool = False
) -> np.ndarray:
    total = sum(weight)
    t = weight[1] / total if abs(total) >= 1e-6 else 0.5
    a, b = wide(x) if base is None else deltas(x, base)
    offset = 0.0 if base is None else base.astype(np.float64)
    if flatten or a.ndim < 2:
        return offset + arc(a, b, t)
    axis = 0 if row_wise else a.ndim - 1
    first, second = (np.moveaxis(each, axis, -1) for each in (a, b))
    merged = np.empty_like(first)
    for index in np.ndindex(first.shape[:-1]):
        merged[index] = arc(first[index], second[index], t)
    return offset + np.moveaxis(merged, -1, axis)


def multislerp(
    x: Arrays, base: np.ndarray | None, weight: Sequence[float], *, normalize: bool = True, eps: float = 1e-8
) -> np.ndarray:
    """With the tangent space mean as the formula has it, though it vanishes."""
    d = wide(x) if base is None else deltas(x, base)
    w = np.array(weight) / (sum(weight) if normalize else 1)
    norms = [np.linalg.norm(each) for each in d]
    units = [each / (size + eps) for each, size in zip(d, norms, strict=True)]
    m = sum(wi * u for wi, u in zip(w, units, strict=True))
    m = m / np.linalg.norm(m)
    v = sum(wi * (u - np.sum(u * m) * m) for wi, u in zip(w, units, strict=True))
    n = np.linalg.norm(v) + eps
    moved = np.cos(n) * m + np.sin(n) * v / n
    merged = moved * sum(wi * size for wi, size in zip(w, norms, strict=True))
    return merged if base is None else merged + base.astype(np.float64)


def karcher(x: Arrays, *, max_iter: int = 10, tol: float = 1e-5) -> np.ndarray:
    vectors = [each for each in wide(x) if np.linalg.norm(each) > 0]
    units = [each / np.linalg.norm(each) for each in vectors]
    m = sum(units)
    m = units[0] if np.linalg.norm(m) < 1e-12 else m / np.linalg.norm(m)
    for _ in range(max_iter):
        tangents = [np.zeros_like(m)]
        for u in units:
            c = angle_cosine(m, u)
            if 1e-5 < np.arccos(c) < np.pi - 1e-9:
                tangents.append(np.arccos(c) / np.sin(np.arccos(c)) * (u - c * m))
        step = sum(tangents) / len(units)
        n = np.linalg.norm(step)
        if n < tol:
            break
        m = np.cos(n) * m + np.sin(n) / n * step
        m = m / np.linalg.norm(m)
    return m * np.mean([np.linalg.norm(each) for each in wide(x)])


def model_stock(x: Arrays, base: np.ndarray, *, filter_wise: bool = False) -> np.ndarray:
    if filter_wise and base.ndim > 1:
        rows = [each.reshape(-1, base.shape[-1]) for each in (base, *x)]
        merged = [model_stock([each[r] for each in rows[1:]], rows[0][r]) for r in range(len(rows[0]))]
        return np.stack(merged).reshape(base.shape)
    d, n = deltas(x, base), len(x)
    c = np.mean([angle_cosine(a, b) for a, b in combinations(d, 2)])
    denominator = 1 + (n - 1) * c
    t = n * c / denominator if denominator >= 1e-6 else 0.0
    return t * sum(wide(x)) / n + (1 - t) * base.astype(np.float64)
