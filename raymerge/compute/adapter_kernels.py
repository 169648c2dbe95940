"""Adding a product of two thin matrices to a part of a large one."""
# ruff: noqa: PLR0917  compiled functions are called by position

from __future__ import annotations

from typing import Any

from raymerge.compute.jit import jit  # first: it settles numba's cache folder  # isort: skip

import numpy as np

_TILE = 1024  # columns whose sums lie in the first-level cache


@jit
def add_product(values: Any, start: Any, left: Any, right: Any, scale: Any, out: Any) -> None:
    """Store values + scale * (left @ right) for the elements from `start` on of a matrix stored by rows.

    Sums are float64, over the inner dimension in its order, and rounded once: they depend on no block's place.
    """
    columns = right.shape[1]
    total = np.empty(_TILE, np.float64)
    done: Any = 0
    while done < out.size:
        row, column = (start + done) // columns, (start + done) % columns
        m = min(_TILE, columns - column, out.size - done)
        _dot_row(left[row], right, column, total[:m])
        for j in range(m):
            out[done + j] = np.float64(values[done + j]) + scale * total[j]
        done += m


@jit
def _dot_row(row: Any, right: Any, column: Any, total: Any) -> None:
    """Four terms at a time, added one after the other as if each had its own pass."""
    rank, end = right.shape[0], column + total.size
    whole = rank // 4 * 4
    total[:] = 0.0
    for k in range(0, whole, 4):
        a, b, c, d = np.float64(row[k]), np.float64(row[k + 1]), np.float64(row[k + 2]), np.float64(row[k + 3])
        p, q = right[k, column:end], right[k + 1, column:end]
        r, s = right[k + 2, column:end], right[k + 3, column:end]
        for j in range(total.size):
            part = total[j] + a * np.float64(p[j])
            part = part + b * np.float64(q[j])
            part = part + c * np.float64(r[j])
            total[j] = part + d * np.float64(s[j])
    for k in range(whole, rank):
        a, p = np.float64(row[k]), right[k, column:end]
        for j in range(total.size):
            total[j] += a * np.float64(p[j])
