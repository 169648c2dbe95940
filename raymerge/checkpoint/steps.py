"""Steps between what is stored and the values of a tensor, as data: plans hold them, tasks carry them out.

A step's `sides` are further tensors, small beside the one they serve, that it needs whole; `held_bytes` is what it
makes of them, beside their own bytes, while the tensor is read. Steps that decode come first; `unit` is set by those of
packed storage: so many elements lie in so many bytes of their own.
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
    def decodes(self) -> bool:
        return False

    @property
    def unit(self) -> None:
        return None

    @property
    def held_bytes(self) -> int:
        """Factors as they are computed with; those of transposed weights twice, while they are turned."""
        nbytes = sum(side.spec.element_count * _decoded_width(side) for side in self.sides)
        return 2 * nbytes if self.transposed else nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleFloat8:
    """Float8 codes of a matrix times the scale of their block of `block` rows and columns, which the edges cut.

    The product is float32, then rounded to `rounded_to`.
    """

    scales: TensorRef
    block: tuple[int, int]
    rounded_to: DType

    @property
    def sides(self) -> tuple[TensorRef, ...]:
        return (self.scales,)

    @property
    def decodes(self) -> bool:
        return True

    @property
    def unit(self) -> None:
        return None

    @property
    def held_bytes(self) -> int:
        return self.scales.spec.element_count * _decoded_width(self.scales)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp4Bit:
    """Codes of four bits, the first in the high half of a byte, that stand for entries of `code` times an absmax.

    Each `block` elements of the flat tensor share one (arXiv 2305.14314). Where these are `nested`, they are themselves
    entries of `nested_code` times one of `nested_absmax` for each `nested_block` of them, plus `offset`. Products are
    float32, the last one rounded to `rounded_to`.
    """

    absmax: TensorRef
    code: TensorRef
    block: int
    rounded_to: DType
    nested_absmax: TensorRef | None = None
    nested_code: TensorRef | None = None
    nested_block: int = 0
    offset: float = 0.0

    @property
    def sides(self) -> tuple[TensorRef, ...]:
        nested = (self.nested_absmax, self.nested_code)
        return (self.absmax, self.code, *(side for side in nested if side is not None))

    @property
    def decodes(self) -> bool:
        return True

    @property
    def unit(self) -> tuple[int, int]:
        return 2, 1

    @property
    def held_bytes(self) -> int:
        """The absmax values, and while they are made as many scales; the tables are small."""
        return 8 * self.absmax.spec.element_count


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackMxfp4:
    """Matrices of FP4 codes, stored transposed: 32 in a row share a power of two (OCP MX specification 1.0, MXFP4).

    `scales` has the shape (matrices, columns, blocks of rows); the values are rounded to `rounded_to`.
    """

    scales: TensorRef
    rounded_to: DType

    @property
    def sides(self) -> tuple[TensorRef, ...]:
        return (self.scales,)

    @property
    def decodes(self) -> bool:
        return True

    @property
    def unit(self) -> tuple[int, int]:
        _, columns, blocks = self.scales.spec.shape
        return columns * blocks * 32, columns * blocks * 16

    @property
    def held_bytes(self) -> int:
        return 0


Step = AddAdapter | ScaleFloat8 | LookUp4Bit | UnpackMxfp4


def _decoded_width(side: TensorRef) -> int:
    return 8 if side.spec.dtype is DType.F64 else 4
