"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal

from raymerge.errors import Problem, UsageError

_UNITS = {"": 1, "B": 10**9}  # B is a billion, as in model names: people write --out-shard-size 1B
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Z]*)", re.ASCII)
_LARGEST_BYTES = 2**63 - 1
_PRINTED = ("kB", "MB", "GB", "TB", "PB")


def parse_size(size: str | int, *, subject: str = "size") -> int:
    """Bytes of "2GB" (2e9), "500M", "1B" (1e9), "1GiB" (2**30), or of a bare number; case does not matter.

    Fractions of a byte are cut. Raises UsageError, naming `subject`, for anything else, and for less than one byte.
    """
    match = _SIZE.fullmatch(str(size).strip().upper())
    unit = _UNITS.get(match.group(2)) if match else None
    if match is None or unit is None or isinstance(size, bool):
        raise _unusable(subject, size, "is not a size")
    nbytes = int(Decimal(match.group(1)) * unit)
    if not 1 <= nbytes <= _LARGEST_BYTES:
        raise _unusable(subject, size, "is less than one byte" if nbytes < 1 else "is more than any store holds")
    return nbytes


def _unusable(subject: str, size: str | int, message: str) -> UsageError:
    remedy = "write bytes, or a number with K, M, G, T or B (1e9), KB, MB, GB, TB, KiB, MiB, GiB or TiB"
    return UsageError(Problem(subject=subject, message=f"{str(size)[:40]!r} {message}", remedy=remedy))


def format_size(nbytes: float) -> str:
    """Three digits and a decimal unit: "14.5 GB", "820 kB", "12 B"."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    value, step = nbytes / 1000, 0
    while value >= 999.5 and step < len(_PRINTED) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.{0 if value >= 99.95 else 1}f} {_PRINTED[step]}"
