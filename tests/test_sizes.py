from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.errors import UsageError
from raymerge.sizes import format_size, parse_size

DECIMAL = {"": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9, "B": 10**9, "T": 10**12}
BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1B", 10**9),
        ("5B", 5 * 10**9),
        ("500M", 500_000_000),
        ("250M", 250_000_000),
        ("8MB", 8_000_000),
        ("2GB", 2_000_000_000),
        ("1GiB", 2**30),
        ("1.5 gib", 3 * 2**29),
        (".5K", 500),
        ("  42 ", 42),
        (42, 42),
        ("0.29KB", 290),
    ],
)
def test_known_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@given(st.integers(1, 10**6), st.sampled_from(sorted({**DECIMAL, **BINARY}.items())), st.booleans())
def test_a_count_and_a_unit_multiply(count: int, unit: tuple[str, int], lower: bool) -> None:
    text = f"{count}{unit[0]}"
    assert parse_size(text.lower() if lower else text) == count * unit[1]


@pytest.mark.parametrize(
    "text", ["", "GB", "1 G B", "-1", "-1K", "1e9", "1KK", "1XB", "0", "0.0001", "½", "٣", "9" * 30]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="--out-shard-size") as error:
        parse_size(text, subject="--out-shard-size")
    assert error.value.exit_code == 2
    assert error.value.problems[0].remedy


@given(st.text(max_size=20))
def test_any_text_gives_bytes_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert parse_size(text) >= 1


@given(st.integers(0, 10**17))
def test_what_is_printed_reads_back_within_its_digits(nbytes: int) -> None:
    number, unit = format_size(nbytes).split()
    unit_bytes = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}[unit]
    half_digit = 0.05 if "." in number else 0.5
    assert abs(float(number) * unit_bytes - nbytes) <= 1.001 * half_digit * unit_bytes
    assert unit == "B" or 1 <= float(number) < 1000
