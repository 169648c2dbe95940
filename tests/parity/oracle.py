"""Every deterministic merge formula in plain float64 numpy, on whole tensors: slow, obvious, and shared with no kernel.

`merge_tensor` takes one tensor's inputs as any float arrays. Magnitudes are ranked as float32 task vectors, and among
equals the lowest element index is kept, as everywhere in raymerge. Random methods are covered where they keep
everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
VOTE_ROUNDING = 2.0**-48  # weights like 0.7 and 0.6 cancel on a grid only up to the rounding of a few products and sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """One output tensor: inputs without the base where the method excludes it, the base (or None), and parameters."""

    x: tuple[Array, ...]
    base: Array | None
    shared: Mapping[str, Any]
    each: tuple[Mapping[str, Any], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x[0].shape if self.x else self.base.shape  # type: ignore[union-attr]

    def weights(self) -> Array:
        return np.array([float(values["weight"]) for values in self.each])

    def flat(self) -> list[Array]:
        return [value.reshape(-1) for value in self.x]

    def flat_base(self) -> Array:
        assert self.base is not None
        return self.base.reshape(-1)

    def deltas(self) -> list[Array]:
        """Task vectors, flat; the inputs themselves without a base."""
        return [value - self.flat_base() for value in self.flat()] if self.base is not None else self.flat()


def merge_tensor(
    method: str,
    x: Sequence[Array],
    *,
    base: Array | None = None,
    shared: Mapping[str, Any] | None = None,
    each: Sequence[Mapping[str, Any]] = (),
) -> Array:
    """The method's exact result in float64 for one tensor, missing parameters at their defaults."""
    defaults = SHARED_DEFAULTS.get(method, {})
    per_input = EACH_DEFAULTS.get(method, {})
    operands = Operands(
        x=tuple(np.asarray(value, np.float64) for value in x),
        base=None if base is None else np.asarray(base, np.float64),
        shared={**defaults, **(shared or {})},
        each=tuple({**per_input, **values} for values in each) or tuple(dict(per_input) for _ in x),
    )
    return FORMULAS[method](operands).reshape(operands.shape)


# ---- linear combinations


def linear(o: Operands) -> Array:
    total = sum(w * x for w, x in zip(o.weights(), o.x, strict=True))
    return total / o.weights().sum() if o.shared["normalize"] else total


def task_arithmetic(o: Operands) -> Array:
    return _add_weighted(o, o.deltas())


def _add_weighted(o: Operands, deltas: list[Array]) -> Array:
    total = sum((w * d for w, d in zip(o.weights(), deltas, strict=True)), np.zeros_like(o.flat_base()))
    if o.shared["normalize"] and abs(o.weights().sum()) > 0:
        total = total / o.weights().sum()
    return o.flat_base() + o.shared["lambda"] * total


def slerp(o: Operands) -> Array:
    a, b = o.flat()
    return _slerp(a, b, float(o.shared["t"]), limit=0.9995)


def _slerp(a: Array, b: Array, t: float, *, limit: float) -> Array:
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(np.clip(a @ b / norm, -1, 1)) if norm else 1.0
    if abs(cosine) > limit:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return np.sin((1 - t) * angle) / np.sin(angle) * a + np.sin(t * angle) / np.sin(angle) * b


def nuslerp(o: Operands) -> Array:
    first, second = o.weights()
    t = second / (first + second) if abs(first + second) >= 1e-6 else 0.5
    a, b = (d.reshape(o.shape) for d in o.deltas())
    limit = np.sqrt(1 - 1e-16)
    if o.shared["nuslerp_flatten"]:
        merged = _slerp(a.reshape(-1), b.reshape(-1), t, limit=limit).reshape(o.shape)
    else:
        axis = 0 if o.shared["nuslerp_row_wise"] else -1
        rows_a, rows_b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
        merged = np.empty_like(rows_a)
        for index in np.ndindex(rows_a.shape[:-1]):
            merged[index] = _slerp(rows_a[index], rows_b[index], t, limit=limit)
        merged = np.moveaxis(merged, -1, axis)
    return merged if o.base is None else merged + o.base


def multislerp(o: Operands) -> Array:
    deltas, weights = o.deltas(), o.weights()
    if o.shared["normalize_weights"]:
        weights = weights / weights.sum()
    norms = np.array([np.linalg.norm(d) for d in deltas])
    units = [d / (n + o.shared["eps"]) for d, n in zip(deltas, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    if np.linalg.norm(mean) < o.shared["eps"]:
        if len(deltas) != 2:
            raise ValueError("the weighted sum of unit vectors is zero")
        return sum(w * d for w, d in zip(weights, deltas, strict=True)) + (0 if o.base is None else o.flat_base())
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True))
    size = np.linalg.norm(tangent) + o.shared["eps"]
    direction = np.cos(size) * mean + (np.sin(size) * tangent / size if size > 0 else 0)
    merged = direction * (weights @ norms)
    return merged if o.base is None else merged + o.flat_base()


def karcher(o: Operands) -> Array:
    norms = np.array([np.linalg.norm(x) for x in o.flat()])
    units = [x / n for x, n in zip(o.flat(), norms, strict=True) if n > 0]
    if not units:
        return np.zeros_like(o.flat()[0])
    mean = sum(units) / len(units)
    mean = mean / np.linalg.norm(mean) if np.linalg.norm(mean) > 0 else units[0]
    for _ in range(int(o.shared["max_iter"])):
        tangent = np.zeros_like(mean)
        for unit in units:
            cosine = float(np.clip(mean @ unit, -1, 1))
            angle = np.arccos(cosine)
            if np.sin(angle) > 0:
                tangent += angle / np.sin(angle) * (unit - cosine * mean) / len(units)
        size = np.linalg.norm(tangent)
        if size < o.shared["tol"]:
            break
        mean = np.cos(size) * mean + np.sin(size) * tangent / size
        mean = mean / np.linalg.norm(mean)
    return mean * norms.mean()


def model_stock(o: Operands) -> Array:
    x = np.stack(o.x)
    base = o.base if o.base is not None else np.zeros(o.shape)
    filter_wise = o.shared["filter_wise"] and len(o.shape) > 1
    rows = x.reshape(len(x), -1, o.shape[-1]) if filter_wise else x.reshape(len(x), 1, -1)
    base_rows = base.reshape(rows.shape[1:])
    merged = np.empty_like(base_rows)
    for row in range(rows.shape[1]):
        merged[row] = _stock(rows[:, row], base_rows[row])
    return merged


def _stock(x: Array, base: Array) -> Array:
    deltas = x - base
    norms = np.linalg.norm(deltas, axis=1)
    count = len(x)
    cosines = [
        deltas[i] @ deltas[j] / (norms[i] * norms[j]) if norms[i] * norms[j] > 0 else 0.0
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = float(np.mean(cosines))
    denominator = 1 + (count - 1) * cosine
    if denominator < 1e-6:
        return base
    t = count * cosine / denominator
    return t * x.mean(axis=0) + (1 - t) * base


# ---- sparsified task vectors


def magnitudes(delta: Array) -> Array:
    return np.abs(delta.astype(np.float32))


def ranked(delta: Array) -> Array:
    """Element indices by falling magnitude; among equals the lowest index first."""
    return np.argsort(-magnitudes(delta), kind="stable")


def kept_count(density: float, count: int) -> int:
    if density <= 0:
        return 0
    return min(count, max(1, int(np.floor(density * count))))


def trim(delta: Array, density: float) -> Array:
    kept = np.zeros_like(delta)
    chosen = ranked(delta)[: kept_count(density, delta.size)]
    kept[chosen] = delta[chosen]
    return kept


def trim_outliers(delta: Array, density: float, gamma: float) -> Array:
    count = delta.size
    keep, drop = int(np.floor(density * count)), int(np.floor(gamma * count))
    order = ranked(delta)
    chosen = order[drop : drop + keep] if drop + keep <= count else order[count - keep :]
    kept = np.zeros_like(delta)
    kept[chosen] = delta[chosen]
    return kept


def keep_all(delta: Array, density: float) -> Array:
    """A random method where it is certain: everything kept, or nothing."""
    assert density <= 0 or density >= 1 - 1e-6, "random: no oracle"
    return delta.copy() if density > 0 else np.zeros_like(delta)


def rescale(original: Array, kept: Array) -> Array:
    remaining = np.abs(kept).sum()
    return kept * (np.abs(original).sum() / remaining) if remaining > 0 else kept


def _sparse(o: Operands, sparsify: Callable[[Array, Mapping[str, Any]], Array]) -> list[Array]:
    result = []
    for delta, values in zip(o.deltas(), o.each, strict=True):
        kept = sparsify(delta, values)
        result.append(rescale(delta, kept) if o.shared["rescale"] else kept)
    return result


def elected_sign(votes: Sequence[Array]) -> Array:
    """The sign of the votes' sum; +1 where it is zero, also where it is zero but for float64 rounding."""
    total = sum(votes)
    doubt = VOTE_ROUNDING * sum(np.abs(vote) for vote in votes)
    return np.where(total >= -doubt, 1.0, -1.0)


def _elect(o: Operands, deltas: list[Array]) -> Array:
    weights = o.weights()
    votes = [w * d for w, d in zip(weights, deltas, strict=True)]
    elected = elected_sign(votes)
    agree = [np.sign(vote) == elected for vote in votes]
    total = sum(np.where(mask, vote, 0) for mask, vote in zip(agree, votes, strict=True))
    if o.shared["normalize"]:
        divisor = sum(np.where(mask, w, 0.0) for mask, w in zip(agree, weights, strict=True))
        total = total / np.where(divisor == 0, 1.0, divisor)
    return o.flat_base() + o.shared["lambda"] * total


def _by_density(delta: Array, values: Mapping[str, Any]) -> Array:
    return trim(delta, float(values["density"]))


def _by_band(delta: Array, values: Mapping[str, Any]) -> Array:
    return trim_outliers(delta, float(values["density"]), float(values["gamma"]))


def _all(delta: Array, values: Mapping[str, Any]) -> Array:
    return keep_all(delta, float(values["density"]))


def ties(o: Operands) -> Array:
    return _elect(o, _sparse(o, _by_density))


def breadcrumbs(o: Operands) -> Array:
    return _add_weighted(o, _sparse(o, _by_band))


def breadcrumbs_ties(o: Operands) -> Array:
    return _elect(o, _sparse(o, _by_band))


def keep_all_linear(o: Operands) -> Array:
    return _add_weighted(o, _sparse(o, _all))


def keep_all_ties(o: Operands) -> Array:
    return _elect(o, _sparse(o, _all))


def sce(o: Operands) -> Array:
    deltas = np.stack(o.deltas())
    share = float(o.shared["select_topk"])
    if share < 1:
        variance = deltas.astype(np.float32).astype(np.float64).var(axis=0)
        chosen = np.argsort(-variance, kind="stable")[: int(share * np.count_nonzero(variance))]
        mask = np.zeros(deltas.shape[1], bool)
        mask[chosen] = True
        deltas = np.where(mask, deltas, 0)
    weights = np.square(deltas).mean(axis=1)
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
    elected = elected_sign(list(deltas))
    agree = np.sign(deltas) == elected
    divisor = (weights[:, None] * agree).sum(axis=0)
    total = (weights[:, None] * deltas * agree).sum(axis=0)
    return o.flat_base() + total / np.where(divisor == 0, 1.0, divisor)


def ram(o: Operands) -> Array:
    return _ram(o, [1.0] * len(o.x))


def ramplus_tl(o: Operands) -> Array:
    active = _active(o)
    shared_entries = active.sum(axis=0) > 1
    factors = []
    for mask in active:
        unique = np.count_nonzero(mask & ~shared_entries)
        rho = np.count_nonzero(mask & shared_entries) / unique if unique else 0.0
        factors.append(1 + o.shared["r"] * float(np.clip(rho, 0, o.shared["alpha"])))
    return _ram(o, factors)


def _active(o: Operands) -> Array:
    return np.stack([magnitudes(d) > o.shared["epsilon"] for d in o.deltas()])


def _ram(o: Operands, factors: list[float]) -> Array:
    active, deltas = _active(o), np.stack(o.deltas())
    count = active.sum(axis=0)
    mean = np.where(active, deltas, 0).sum(axis=0) / np.maximum(count, 1)
    unique = np.where(active, deltas * np.array(factors)[:, None], 0).sum(axis=0)
    return o.flat_base() + np.where(count == 1, unique, mean)


# ---- element by element, and rows


def nearswap(o: Operands) -> Array:
    base = o.flat_base()
    (delta,) = o.deltas()
    share = np.clip(float(o.shared["t"]) / np.maximum(np.abs(delta), 1e-6), 0, 1)
    return base + share * delta


def arcee_fusion(o: Operands) -> Array:
    (delta,) = o.deltas()
    x, base = o.x[0], o.base
    assert base is not None
    p, q = _softmax(x) + 1e-8, _softmax(base) + 1e-8
    divergence = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    importance = (np.abs(delta.reshape(o.shape)) * divergence).reshape(-1)
    ordered = np.sort(importance)  # the quantiles are entries, the lower of the two that surround them
    low, median, high = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return o.flat_base() + np.where(importance >= median + 1.5 * (high - low), delta, 0)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def passthrough(o: Operands) -> Array:
    (x,) = o.x
    scale = o.each[0].get("scale")
    return x if scale is None else x * float(scale)


FORMULAS: dict[str, Callable[[Operands], Array]] = {
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": keep_all_linear,
    "dare_ties": keep_all_ties,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "della": keep_all_ties,
    "della_linear": keep_all_linear,
    "sce": sce,
    "model_stock": model_stock,
    "nearswap": nearswap,
    "arcee_fusion": arcee_fusion,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "passthrough": passthrough,
}
_SPARSE: dict[str, Any] = {"normalize": False, "rescale": False, "lambda": 1.0}
SHARED_DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    "multislerp": {"normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "task_arithmetic": {"normalize": False, "lambda": 1.0},
    "ties": {**_SPARSE, "normalize": True},
    "dare_linear": {**_SPARSE, "rescale": True},
    "dare_ties": {**_SPARSE, "rescale": True},
    "breadcrumbs": _SPARSE,
    "breadcrumbs_ties": _SPARSE,
    "della": {**_SPARSE, "rescale": True, "normalize": True},
    "della_linear": {**_SPARSE, "rescale": True},
    "sce": {"select_topk": 1.0},
    "model_stock": {"filter_wise": False},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
}
EACH_DEFAULTS: dict[str, dict[str, Any]] = {
    **{method: {"density": 1.0} for method in ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties")},
    "della": {"density": 1.0, "epsilon": 0.15},
    "della_linear": {"density": 1.0, "epsilon": 0.15},
}
for _method in ("breadcrumbs", "breadcrumbs_ties"):
    EACH_DEFAULTS[_method] = {"density": 1.0, "gamma": 0.01}
