"""The arithmetic that methods and the shard runner are written in, whatever device carries it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymerge.compute.sums import CHUNK_ELEMENTS
from raymerge.dtypes import DType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array = Any  # a numpy array on the CPU, a torch tensor elsewhere: 1-D, contiguous, float32 or (wide) float64
# uint8, 1 where an element is kept, as long as the block; None keeps every element; a Limit, Drawn or PackedMask
Mask = Any
Buffer = Any  # bytes of a block: anything with the buffer protocol; writable where it is filled

PROBABILITY_FLOOR = 1e-8  # added to probabilities before their logarithm, as the peer does
VOTE_ROUNDING = 2.0**-48  # a sum of votes below this share of the winning ones is 0 but for rounding
WEIGHT_ROUNDING = (
    2.0**-40
)  # a sum of weights below this share of their magnitudes is 0 but for rounding: 0.1 + 0.2 - 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A mask that need not be written out: keeps |x - base| above the threshold, or equal to it if `inclusive`.

    Of these it keeps only what `below`, another one, does not. NaN lies above every threshold. Thresholds are finite.
    For arguments named `mask` or `masks` beside the x and the base that are meant.
    """

    threshold: float
    inclusive: bool
    below: Limit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A mask that need not be written out: what `random_mask` gives for the same stream, start and limit.

    `chunk_norms` leaves it in `kept` where that is given.
    """

    key: int
    start: int
    limit: int
    kept: PackedMask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMask:
    """A mask in an eighth of its size: a bit for each element, the lowest of each byte first.

    `norms`, where given, are what `chunk_norms` finds under it in each row: (rows, 2).
    """

    bits: Array
    norms: NDArray[np.float64] | None = None

    @property
    def nbytes(self) -> int:
        return int(self.bits.nbytes)

    def part(self, start: int, count: int) -> PackedMask:
        """So many elements from `start` on, a multiple of 8, in the same memory."""
        return PackedMask(bits=self.bits[start // 8 : -(-(start + count) // 8)])


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
    """Block arithmetic. Results are fresh arrays unless a method says otherwise; arguments are never changed.

    `out`, where given, is what `view` made of the bytes of an output: results are rounded into it, as `encode` would,
    and it is returned.
    """

    @abstractmethod
    def decode(self, raw: Buffer, dtype: DType, out: Array | None = None, *, wide: bool = False) -> Array:
        """The elements stored in `raw` as float32, exactly (float64 with `wide`, which float64 storage needs).

        `out`, an array of that type with as many elements, is filled and returned where given.
        """

    def view(self, raw: Buffer, dtype: DType) -> Array | None:  # noqa: ARG002  where nothing is taken as it lies
        """The elements in a form that takes no decoding and that the other operations accept; None: decode them."""
        return None

    @abstractmethod
    def encode(self, array: Array, dtype: DType, out: Buffer) -> int:
        """Round once, to nearest even, into the bytes of `out`; returns how many results are not finite."""

    @abstractmethod
    def count_nonfinite(self, array: Array) -> int:
        """How many elements are not finite."""

    @abstractmethod
    def deltas(self, x: Sequence[Array], base: Array) -> tuple[Array, ...]:
        """x_i - base, rounded to the blocks' type."""

    @abstractmethod
    def weighted_sum(
        self, coefficients: Sequence[float], arrays: Sequence[Array], *, out: Array | None = None
    ) -> Array:
        """The sum c_i a_i, accumulated in float64 in the order given, rounded once to the blocks' type."""

    @abstractmethod
    def masked_sum(
        self,
        x: Sequence[Array],
        base: Array | None,
        masks: Sequence[Mask],
        coefficients: Sequence[float],
        factor: float = 1.0,
        *,
        out: Array | None = None,
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
        gains: Sequence[float] | None = None,
        out: Array | None = None,
    ) -> Array:
        """As masked_sum, but base + factor * the elected mean of the votes c_i (x_i - base) whose mask is set.

        The sign of the votes' float64 sum is elected, with `count_votes` that of the sum of their signs; a sum below
        VOTE_ROUNDING of what it would elect counts as +. The votes of that sign are added, each times its input's gain
        (default 1), and with `divide` divided by the sum of their weights; a weight sum that is 0 but for rounding
        counts as 1.
        """

    @abstractmethod
    def empty_counts(self, bins: int, most: int) -> Array:
        """A table of `bins` zeros and one more for what lies above them, to count up to `most` elements in."""

    @abstractmethod
    def read_counts(self, counts: Array) -> NDArray[np.integer[Any]]:
        """The table as a numpy array, which may share its memory."""

    def recycle_counts(self, counts: Array) -> None:  # noqa: B027  where there is nothing to gain
        """Let the next empty_counts use a table's memory."""

    def magnitude_bits(self, x: Array) -> int:
        """Bits of a magnitude without the sign's, as count_magnitudes reads them."""
        return 8 * int(x.itemsize) - 1

    @abstractmethod
    def count_magnitudes(self, x: Array, base: Array | None, counts: Array, *, low: int, shift: int) -> int:
        """Add to counts[i] the magnitudes |x - base| whose bits, less `low` and shifted down by `shift`, are i.

        Bits are read as an unsigned integer, which orders magnitudes, NaN above infinity. Those beyond the table count
        in its last entry; those under `low` nowhere. Returns how many of those in the table have bits that the shift
        drops: where none has, an entry is one magnitude.
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

    def draw(self, key: int, start: int, count: int, limit: int, kept: PackedMask | None = None) -> Mask:  # noqa: ARG002
        """As random_mask, written out or not; `kept`, from room_to_keep, is part of what is returned: see Drawn."""
        return self.random_mask(key, start, count, limit)

    def room_to_keep(self, count: int) -> PackedMask | None:  # noqa: ARG002
        """Memory for a drawn mask of so many elements; None where it is drawn again instead."""
        return None

    @abstractmethod
    def chunk_gram(self, x: Sequence[Array], base: Array | None, chunk: int = CHUNK_ELEMENTS) -> NDArray[np.float64]:
        """Gram matrix of x_i - base in each chunk of elements (or row, by its length): (chunks, K, K), float64."""

    @abstractmethod
    def chunk_sums(
        self, x: Array, base: Array | None, mask: Mask, *, squared: bool = False, chunk: int = CHUNK_ELEMENTS
    ) -> NDArray[np.float64]:
        """Sum of |x - base|, or its square, where the mask is set, in each chunk or row: shape (chunks,), float64."""

    def chunk_norms(
        self, x: Sequence[Array], base: Array | None, masks: Sequence[Mask], chunk: int = CHUNK_ELEMENTS
    ) -> NDArray[np.float64]:
        """Sums of |x_i - base| in each chunk or row, (chunks, K, 2): over all elements, and where its mask is set.

        Differences, and sums of up to four of them, are of the blocks' type, and float64 from there on; or from the
        start where they do not fit. Chunks that a drawn mask is kept for have a multiple of 8 elements.
        """
        import numpy as np

        norms = np.empty((-(-len(x[0]) // chunk), len(x), 2))
        known = {i: found for i, mask in enumerate(masks) if (found := _norms_of(mask, len(x[0]), chunk)) is not None}
        for i, found in known.items():
            norms[:, i] = found
        if left := [i for i in range(len(x)) if i not in known]:
            norms[:, left] = self._chunk_norms([x[i] for i in left], base, [masks[i] for i in left], chunk)
        fits = np.isfinite(norms)
        if fits.all():
            return norms
        exact = [
            [self.chunk_sums(each, base, which, chunk=chunk) for which in (None, mask)]
            for each, mask in zip(x, masks, strict=True)
        ]
        return np.where(fits, norms, np.moveaxis(np.array(exact), 2, 0))

    @abstractmethod
    def _chunk_norms(
        self, x: Sequence[Array], base: Array | None, masks: Sequence[Mask], chunk: int
    ) -> NDArray[np.float64]:
        """What chunk_norms gives where it fits the blocks' type; else not finite."""

    @abstractmethod
    def mask_difference(self, kept: Mask, dropped: Mask) -> Mask:
        """What `kept` keeps and `dropped` does not, both written out."""

    def write_mask(self, mask: Limit, x: Array, base: Array | None) -> Mask:
        """What a limit keeps of the block, written out."""
        written = self.top_mask(x, base, mask.threshold, len(x) if mask.inclusive else 0)
        return written if mask.below is None else self.mask_difference(written, self.write_mask(mask.below, x, base))

    @abstractmethod
    def rank_limits(self, density: float, epsilon: float, row_length: int) -> Array:
        """Limits of the random bits by place in a row: `keep_limit` of density - epsilon + 2 epsilon rank.

        The largest element, at place 0, has rank 1, the last one 0; a lone one has rank 0. For rank_mask, whose form
        they are in; density -/+ epsilon must lie inside (0, 1).
        """

    @abstractmethod
    def rank_mask(
        self, x: Array, base: Array | None, limits: Array, *, key: int, start: int, norms: bool = False
    ) -> Mask:
        """1 where an element's random bits lie below the limit of its place in its row, as long as the limits.

        Places count from the row's largest |x - base| down, equal ones in index order. The block holds whole rows and
        starts at element `start`. The mask takes `nbytes`, whether it is written out or packed. With `norms` it may
        bring those of its rows along, which then cost chunk_norms nothing.
        """

    @abstractmethod
    def delta_products(self, a: Array, b: Array, base: Array | None) -> Array:
        """(a - base) * (b - base) in float64, element by element."""

    @abstractmethod
    def weighted_sum_by(self, coefficients: Sequence[Array], arrays: Sequence[Array]) -> Array:
        """As weighted_sum, with a float64 coefficient for each element: see repeat and cycle."""

    @abstractmethod
    def repeat(self, values: Sequence[float], times: int) -> Array:
        """Each value `times` times in turn, float64: coefficients by row."""

    @abstractmethod
    def cycle(self, values: Sequence[float], start: int, count: int) -> Array:
        """values[(start + j) % len(values)] for j below `count`, float64: coefficients by column."""

    @abstractmethod
    def row_divergences(self, x: Array, base: Array, row_length: int) -> NDArray[np.float64]:
        """Kullback-Leibler divergence of softmax(x) from softmax(base) in each row, 1e-8 added to each probability.

        Devices differ in the last bits: exp and log are not rounded alike everywhere.
        """

    @abstractmethod
    def row_scaled_magnitudes(self, x: Array, base: Array, factors: Sequence[float], row_length: int) -> Array:
        """|x - base| times its row's factor, rounded once to the blocks' type."""

    @abstractmethod
    def spread(self, x: Sequence[Array]) -> Array:
        """Standard deviation over the inputs of each element, rounded once; exactly 0 where all are equal."""

    @abstractmethod
    def step_towards(self, x: Array, base: Array, step: float, floor: float) -> Array:
        """The sum base + clip(step / max(|x - base|, floor), 0, 1) (x - base), in float64, rounded once."""

    @abstractmethod
    def active_counts(self, x: Sequence[Array], base: Array, epsilon: float) -> list[tuple[int, int]]:
        """For each input the elements where |x_i - base| > epsilon: (where others' are too, where it is alone)."""

    @abstractmethod
    def active_mean(self, x: Sequence[Array], base: Array, epsilon: float, gains: Sequence[float]) -> Array:
        """Base + the mean of the x_i - base over epsilon, in float64, rounded once; a lone one times its gain."""


def _norms_of(mask: Mask, count: int, chunk: int) -> NDArray[np.float64] | None:
    """The norms that the mask of so many elements brings along, where its rows are as long as chunks."""
    norms = mask.norms if isinstance(mask, PackedMask) else None
    return norms if norms is not None and len(norms) * chunk == count else None
