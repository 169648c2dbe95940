"""Every golden case, and where its expected output lies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from golden.cases import Case
from golden.recipes_core import core_cases
from golden.recipes_more import more_cases

EXPECTED_FOLDER = Path(__file__).parent / "expected"
ALL_CASES: tuple[Case, ...] = (*core_cases(), *more_cases())
CASES = {case.name: case for case in ALL_CASES}


def file_of(case: Case) -> Path:
    """A file per method, so that a new method's cases touch no other file."""
    return EXPECTED_FOLDER / f"{case.method}.npz"


def stride_of(case: Case, element_count: int) -> int:
    """Of large tensors the golden file holds every n-th element (a prime, so that all columns take part)."""
    if case.group != "wide" or element_count <= 4096:
        return 1
    return 97 if element_count < 65_536 else 499


def expected(case: Case) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The kept elements of every output tensor, flat, and the case's manifest entry."""
    with np.load(file_of(case)) as arrays:
        entry = json.loads(arrays["manifest"].tobytes())[case.name]
        values = arrays[case.name.replace("/", "__")]
    tensors: dict[str, np.ndarray] = {}
    start = 0
    for name, (_, *dims) in entry.get("tensors", {}).items():
        count = int(np.prod(dims))
        kept = -(-count // stride_of(case, count))
        tensors[name] = values[start : start + kept]
        start += kept
    assert start == values.size
    return tensors, entry
