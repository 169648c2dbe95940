"""How an S3 object is cut into parts: sizes alone, for the writer and for whoever asks what it will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymerge.storage.base import CopyRange
from raymerge.storage.urls import scheme_of

MIB = 1 << 20
PART_BYTES = 16 * MIB
SMALLEST_PART_BYTES = 5 * MIB  # S3 takes no smaller one but the last
COPY_PART_BYTES = 64 * MIB  # S3 takes up to 5 GiB; pieces are copied side by side
MOST_PARTS = 9_000  # S3 takes 10,000; copies that begin between parts need a few more
BUFFERED_PARTS = 4  # one being filled and three on their way


def part_bytes(nbytes: int) -> int:
    return max(PART_BYTES, -(-nbytes // MOST_PARTS // MIB) * MIB)


def buffered_bytes(nbytes: int) -> int:
    """The most memory a writer of an object of `nbytes` holds."""
    return min(nbytes, part_bytes(nbytes) * BUFFERED_PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSizes:
    """The sizes of the parts of one object: of those sent, and the least that one may have unless it is the last."""

    nbytes: int
    sent: int
    least: int

    @classmethod
    def of(cls, nbytes: int) -> PartSizes:
        return cls(nbytes=nbytes, sent=part_bytes(nbytes), least=max(SMALLEST_PART_BYTES, -(-nbytes // MOST_PARTS)))

    def through(self, nbytes: int, *, filled: int, ends_object: bool) -> int:
        """Of a range to copy, how many leading bytes go through this process.

        They fill the part that `filled` bytes have begun; all do where the rest would be too small for a part.
        """
        head = max(0, self.least - filled) if filled else 0
        rest = nbytes - head
        small = self.nbytes <= self.sent or (rest < self.least and not (ends_object and rest > 0))
        return nbytes if small else head


def copied_bytes(pieces: Sequence[CopyRange | int]) -> int:
    """See Store.copied_bytes: what S3Writer does with these pieces, byte counts alone."""
    lengths = [piece.nbytes if isinstance(piece, CopyRange) else piece for piece in pieces]
    sizes = PartSizes.of(sum(lengths))
    position = filled = copied = 0
    for piece, nbytes in zip(pieces, lengths, strict=True):
        position += nbytes
        sent = nbytes
        if isinstance(piece, CopyRange) and scheme_of(piece.url) == "s3":
            sent = sizes.through(nbytes, filled=filled, ends_object=position == sizes.nbytes)
        copied += nbytes - sent
        filled = (filled + sent) % sizes.sent if sent == nbytes else 0
    return copied
