"""What a method sees of one output tensor: parameters, shape, and blocks of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymerge.compute.operations import Operations
    from raymerge.methods.declaration import Array


@dataclass(slots=True, kw_only=True)
class Block:
    """Elements [start, start + count) of the flattened tensor, from every input: 1-D float32 (float64 if any input is).

    Arrays are scratch: they hold until the next block is drawn from the same scan. `out`, in the pass that combines
    and where not None, is what the last operation may round its results into.
    """

    start: int
    count: int
    x: tuple[Array, ...]
    base: Array | None
    operations: Operations
    out: Array | None = None
    _deltas: tuple[Array, ...] | None = None

    @property
    def deltas(self) -> tuple[Array, ...]:
        """The task vectors x_i - base, or the inputs themselves where there is no base."""
        if self.base is None:
            return self.x
        if self._deltas is None:
            self._deltas = self.operations.deltas(self.x, self.base)
        return self._deltas


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs of one output tensor.

    `shared` and `each` hold the resolved parameters, every declared name present; `each` has one mapping per input,
    the base excluded where the method excludes it. `keys` has one random stream key per input.
    """

    shape: tuple[int, ...]
    shared: Mapping[str, Any]
    each: tuple[Mapping[str, Any], ...]
    keys: tuple[int, ...]
    has_base: bool
    operations: Operations
    open_scan: Callable[[bool], Iterator[Block]] = field(repr=False)
    open_count: Callable[[bool], Iterator[Block]] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """Number of inputs, the base excluded where the method excludes it."""
        return len(self.each)

    @property
    def element_count(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def row_length(self) -> int:
        """Elements in a row: the last dimension; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    def parameter(self, name: str) -> tuple[Any, ...]:
        """A per-input parameter's values, in input order."""
        return tuple(values[name] for values in self.each)

    def scan(self, *, rows: bool = False) -> Iterator[Block]:
        """One pass over the tensor in element order. With `rows`, every block holds whole rows.

        Without `rows` every block but the last holds a multiple of 4096 elements, so that sums over fixed chunks do
        not depend on the block size.
        """
        return self.open_scan(rows)

    def scan_to_count(self, *, sample: bool = False) -> Iterator[Block]:
        """One pass for operations that make no array as long as a block: blocks may be much larger.

        With `sample`, a fixed share of the elements, or all of them; the blocks' starts mean nothing.
        """
        return self.open_count(sample) if self.open_count is not None else self.open_scan(False)
