"""Steps between what is stored and the values of a tensor, as data: plans hold them, tasks carry them out.

A step's `sides` are further tensors, small beside the one they serve, that it needs whole; `held_bytes` is what they
take in memory while the tensor is read. `unit` is set by steps that decode packed storage: so many elements lie in so
many bytes of their own; None where elements are stored one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymerge.checkpoint.nouns import TensorRef
from raymerge.dtypes import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAdapter:
    """W + scale * up @ down, or its transpose where W is stored so (arXiv 2106.09685).

    `down` has the shape (rank, inputs), `up` (outputs, rank); W is (outputs, inputs), `transposed` (inputs, outputs).
    """

    down: TensorRef
    up: TensorRef
    scale: float
    transposed: bool = False

    @property
    def sides(self) -> tuple[TensorRef, ...]:
        return self.down, self.up

    @property
    def unit(self) -> None:
        return None

    @property
    def held_bytes(self) -> int:
        """As stored, and decoded: float32, but for float64 factors."""
        return sum(side.nbytes + side.spec.element_count * _decoded_width(side) for side in self.sides)


Step = AddAdapter


def _decoded_width(side: TensorRef) -> int:
    return 8 if side.spec.dtype is DType.F64 else 4
