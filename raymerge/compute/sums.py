"""Sums over a whole tensor that come out the same whatever blocks it is read in.

Kernels sum fixed chunks of 4096 elements in float64 (L1 norms add four magnitudes in the blocks' type first); the
chunks' partial sums are added pairwise in index order, always along the same binary tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_ELEMENTS = 4096
LANES = 64  # element j of a chunk goes to lane j % 64: enough independent sums for any vector unit


class PairwiseSum:
    """Adds the rows it is given, in order: row 2j to row 2j + 1, those sums to each other, and so on."""

    def __init__(self, together_bytes: int = 1 << 18) -> None:
        """Rows are added up when so many bytes of them wait: numpy takes longer to be called than to add few."""
        self._together_bytes = together_bytes
        self._pending: list[NDArray[np.float64] | None] = []
        self._waiting: list[NDArray[np.float64]] = []
        self._waiting_bytes = 0

    def add(self, partials: NDArray[np.float64]) -> None:
        """Append rows, of shape (chunks, ...), in element order."""
        self._waiting.append(partials)
        self._waiting_bytes += partials.nbytes
        if self._waiting_bytes >= self._together_bytes:
            self._add_up()

    def _add_up(self) -> None:
        import numpy as np

        rows = np.concatenate(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        level = 0
        while len(rows):
            if level == len(self._pending):
                self._pending.append(None)
            waiting = self._pending[level]
            if waiting is not None:
                rows = np.concatenate((waiting, rows))
            paired = len(rows) // 2 * 2
            self._pending[level] = rows[paired:].copy() if paired < len(rows) else None
            rows = rows[0:paired:2] + rows[1:paired:2]
            level += 1

    def total(self) -> NDArray[np.float64]:
        """The sum of all rows; a zero of no dimensions where there were none."""
        import numpy as np

        if self._waiting:
            self._add_up()
        total: NDArray[np.float64] | None = None
        for waiting in self._pending:
            if waiting is not None:
                total = waiting[0] if total is None else waiting[0] + total
        return np.zeros(()) if total is None else total
