"""Steps between what is stored and the values of a tensor, as data: plans hold them, tasks carry them out.

A step's `sides` are further tensors, small beside the one they serve, that it needs whole; `held_bytes` is what it
makes of them, beside their own bytes, while the tensor is read. Steps that decode come first; `unit` is set by those of
packed storage: so many elements lie in so many bytes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymerge.checkpoint.nouns import TensorRef
from raymerge.checkpoint.row_runs import RowRuns
from raymerge.dtypes import DType

# Rows that lie near each other are read together, into pieces of this size, by up to 16 threads at once.
PIECE_BYTES = 256 * 1024
_READERS = 16
# Where rows are means of several, windows are sized for one row each and this much beside them, or for the most rows.
_MOST_EXTRA_BYTES = 8 << 20
# Positions of a row and a run while they are looked up, as 64-bit integers.
_LOOK_UP_BYTES = 96


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherRows:
    """Rows of several matrices put together, as `runs` say: the only step of its tensor.

    `sources` have the same number of columns, `columns`, and steps of their own; the first is the tensor itself.
    """

    sources: tuple[TensorRef, ...]
    runs: RowRuns
    columns: int

    @property
    def sides(self) -> tuple[TensorRef, ...]:
        return tuple(side for source in self.sources for side in source.sides)

    @property
    def decodes(self) -> bool:
        return False

    @property
    def unit(self) -> tuple[int, int]:
        """A row of the result, and what of the sources it is made of."""
        cover = 1 if self.extra_bytes else self.runs.most_cover
        return self.columns, cover * self._row_bytes

    @property
    def extra_bytes(self) -> int:
        """What a window of rows may hold beside one `unit` for each."""
        extra = self.runs.extra_rows * self._row_bytes
        return extra if extra <= _MOST_EXTRA_BYTES else 0

    @property
    def nbytes(self) -> int:
        """What is read of all sources; more than that by less than a row's packed units for each run."""
        each = zip(self.sources, self.runs.read_rows, strict=True)
        return sum(rows * self.row_bytes(source) for source, rows in each)

    @property
    def held_bytes(self) -> int:
        held = sum(step.held_bytes for source in self.sources for step in source.steps)
        stored = sum(source.nbytes for source in self.sources)
        pieces = min(_READERS * PIECE_BYTES, stored) if self.runs.run_count > len(self.sources) else 0
        return held + pieces + _LOOK_UP_BYTES * (self.runs.run_count + self.runs.row_count)

    @property
    def _row_bytes(self) -> int:
        return max(self.row_bytes(source) for source in self.sources)

    def row_bytes(self, source: TensorRef) -> int:
        """The most bytes that hold a row of a source: exactly that many where its elements are not packed."""
        elements, nbytes = source.unit
        return self.columns * nbytes if elements == 1 else (self.columns // elements + 2) * nbytes


Step = AddAdapter | ScaleFloat8 | LookUp4Bit | UnpackMxfp4 | GatherRows


def _decoded_width(side: TensorRef) -> int:
    return 8 if side.spec.dtype is DType.F64 else 4
