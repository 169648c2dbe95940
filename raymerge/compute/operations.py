"""The arithmetic that methods and the shard runner are written in, whatever device carries it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raymerge.dtypes import DType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array = Any  # a numpy array on the CPU, a torch tensor elsewhere: 1-D, contiguous, float32 or (wide) float64
Mask = Any  # uint8, 1 where an element is kept, as long as the block; None keeps every element
Buffer = Any  # bytes of a block: anything with the buffer protocol; writable where it is filled

VOTE_ROUNDING = 2.0**-48  # a sum of votes below this share of their magnitudes is 0 but for float64 rounding
WEIGHT_ROUNDING = (
    2.0**-40
)  # a sum of weights below this share of their magnitudes is 0 but for rounding: 0.1 + 0.2 - 0.3


def open_operations(device: str = "cpu") -> Operations:
    """Operations on "cpu" (numpy and numba), or on a torch device ("cuda", "cuda:1"; "torch:cpu" is torch's CPU).

    Not thread-safe: scratch memory is reused, so every thread opens its own.
    """
    if device == "cpu":
        from raymerge.compute.cpu_operations import CpuOperations

        return CpuOperations()
    from raymerge.compute.torch_operations import TorchOperations

    return TorchOperations(device.removeprefix("torch:"))


class Operations(ABC):
    """Block arithmetic. Results are fresh arrays unless a method says otherwise; arguments are never changed."""

    @abstractmethod
    def decode(self, raw: Buffer, dtype: DType, out: Array | None = None, *, wide: bool = False) -> Array:
        """The elements stored in `raw` as float32, exactly (float64 with `wide`, which float64 storage needs).

        `out`, an array of that type with as many elements, is filled and returned where given.
        """

    @abstractmethod
    def encode(self, array: Array, dtype: DType, out: Buffer) -> int:
        """Round once, to nearest even, into the bytes of `out`; returns how many results are not finite."""

    @abstractmethod
    def deltas(self, x: Sequence[Array], base: Array) -> tuple[Array, ...]:
        """x_i - base, rounded to the blocks' type."""

    @abstractmethod
    def weighted_sum(self, coefficients: Sequence[float], arrays: Sequence[Array]) -> Array:
        """The sum c_i a_i, accumulated in float64 in the order given, rounded once to the blocks' type."""

    @abstractmethod
    def masked_sum(
        self,
        x: Sequence[Array],
        base: Array | None,
        masks: Sequence[Mask],
        coefficients: Sequence[float],
        factor: float = 1.0,
    ) -> Array:
        """The sum base + factor * sum c_i (x_i - base) over the inputs whose mask is set, in float64, rounded once."""

    @abstractmethod
    def elect(
        self,
        x: Sequence[Array],
        base: Array | None,
        masks: Sequence[Mask],
        coefficients: Sequence[float],
        weights: Sequence[float],
        *,
        factor: float = 1.0,
        divide: bool = True,
        count_votes: bool = False,
    ) -> Array:
        """As masked_sum, but base + factor * the elected mean of the terms c_i (x_i - base) whose mask is set.

        The sign of the terms' float64 sum is elected, with `count_votes` that of the sum of their signs (0 counts
        as +). The terms of that sign are added and, with
        `divide`, divided by the sum of their weights; a weight sum that is 0 but for rounding counts as 1.
        """

    @abstractmethod
    def histogram(self, x: Array, base: Array | None, digit: int, prefix: int) -> NDArray[np.int64]:
        """Counts of a 16-bit digit of the magnitudes |x - base|, read as unsigned integers.

        Digit 0 is the highest; of lower ones only magnitudes are counted whose digits above it, as one integer, equal
        `prefix`. Magnitudes order as their bits do, NaN above infinity.
        """

    @abstractmethod
    def top_mask(self, x: Array, base: Array | None, threshold: float, cut: int) -> Mask:
        """1 where |x - base| > threshold, or equals it at an index of the block below `cut`. NaN is kept."""

    @abstractmethod
    def count_equal(self, x: Array, base: Array | None, threshold: float) -> int:
        """How many elements have |x - base| equal to the threshold."""

    @abstractmethod
    def index_after_equals(self, x: Array, base: Array | None, threshold: float, wanted: int) -> int:
        """The index just after the `wanted`-th element whose magnitude equals the threshold."""

    @abstractmethod
    def no_mask(self, count: int) -> Mask:
        """A mask that keeps nothing."""

    @abstractmethod
    def random_mask(self, key: int, start: int, count: int, limit: int) -> Mask:
        """1 where `random_bits.element_bits(key, start + j)` is below `limit`, for j below `count`."""

    @abstractmethod
    def chunk_gram(self, x: Sequence[Array], base: Array | None) -> NDArray[np.float64]:
        """Gram matrix of x_i - base in each chunk of 4096 elements: shape (chunks, K, K), float64."""

    @abstractmethod
    def chunk_absolute_sums(self, x: Array, base: Array | None, mask: Mask) -> NDArray[np.float64]:
        """Sum of |x - base| where the mask is set, in each chunk of 4096 elements: shape (chunks,), float64."""
