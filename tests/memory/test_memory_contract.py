"""What a task takes at its peak stays below what was projected for it, for every method, held and streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from memory_probe import MIB, Case, Measured, measure
from s3_server import S3Server

from raymerge.methods import all_methods
from raymerge.running import WORKER_BASELINE_BYTES

WEIGHT = {"weight": 0.5}
DENSITY = {"weight": 0.5, "density": 0.3}


def of(method: str, count: int, *, base: bool, **settings: Any) -> Case:
    each = {name: value for name, value in settings.items() if name in DENSITY or name == "scale"}
    shared = {name: value for name, value in settings.items() if name not in each}
    return Case(method=method, shapes=(), room_bytes=0, count=count, base=base, shared=shared, each=each)


GRAM = (
    of("linear", 3, base=False, **WEIGHT),
    of("slerp", 2, base=False, t=0.4),
    of("task_arithmetic", 3, base=True, **WEIGHT),
    of("nuslerp", 2, base=True, **WEIGHT),
    of("multislerp", 3, base=True, **WEIGHT),
    of("karcher", 3, base=False),
    of("model_stock", 3, base=True),
)
SPARSIFY = (
    of("ties", 3, base=True, **DENSITY),
    of("dare_ties", 3, base=True, **DENSITY),
    of("dare_linear", 3, base=True, **DENSITY),
    of("breadcrumbs", 3, base=True, **DENSITY),
    of("breadcrumbs_ties", 3, base=True, **DENSITY),
    of("della", 3, base=True, **DENSITY),
    of("della_linear", 3, base=True, **DENSITY),
    of("sce", 3, base=True, select_topk=0.3),
    of("ram", 3, base=True),
    of("ramplus_tl", 3, base=True),
)
LOCAL = (
    of("nearswap", 1, base=True, t=0.01),
    of("arcee_fusion", 1, base=True),
    of("passthrough", 1, base=False, scale=2.0),
    of("copy", 1, base=False),
    of("nuslerp", 2, base=True, nuslerp_flatten=False, **WEIGHT),
    of("nuslerp", 2, base=True, nuslerp_flatten=False, nuslerp_row_wise=True, **WEIGHT),
    of("model_stock", 2, base=True, filter_wise=True),
)


def held(case: Case) -> Iterator[Case]:
    """Six tensors of 4 MiB an input, no two alike, of which two and a half fit at a time.

    One thread has them read, two have them lent.
    """
    room = int(2.5 * 4 * MIB) * (case.count + case.base + 1)
    shapes = tuple((rows, 2048) for rows in range(1024, 904, -20))
    for threads in (1, 2):
        yield replace(case, shapes=shapes, room_bytes=room, threads=threads, cold=threads == 1)


def streamed(case: Case) -> Iterator[Case]:
    """One tensor of 16 MiB an input, whose rows fit no power of two, and room for 8 MiB."""
    yield replace(case, shapes=((1400, 6000),), room_bytes=8 * MIB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


def check(results: Sequence[Measured]) -> None:
    over = [f"{each.name}: {each.peak:,} of {each.projected:,} {each.terms}" for each in results if not each.holds]
    assert not over, "\n".join(over)
    for each in results:
        assert each.projected <= each.budget, each.name
        assert each.baseline <= WORKER_BASELINE_BYTES, each.name


@pytest.mark.parametrize("family", [GRAM, SPARSIFY, LOCAL], ids=["gram", "sparsify", "local"])
def test_held_tensors_stay_within_the_projection(family: Sequence[Case], folder: Path) -> None:
    results = measure([case for each in family for case in held(each)], folder)
    check(results)
    assert all(each.held == 6 or each.name.startswith("copy") for each in results)


@pytest.mark.parametrize("family", [GRAM, SPARSIFY, LOCAL], ids=["gram", "sparsify", "local"])
def test_streamed_tensors_stay_within_the_projection(family: Sequence[Case], folder: Path) -> None:
    results = measure([case for each in family for case in streamed(each)], folder)
    check(results)
    assert all(each.streamed == 1 for each in results)


BY_ROW = (SPARSIFY[5], *LOCAL[1:2], LOCAL[4], LOCAL[6])
ROOMY = 200 * MIB


def test_rows_longer_than_a_block_rows_of_few_elements_and_thousands_of_tensors(folder: Path) -> None:
    """What one task leaves in the allocator counts against the next: the long rows come first."""
    long, short, many = ((1, 1_000_000), (1_000_000,)), ((200_000, 4),), ((64, 64),)
    cases = [replace(case, shapes=long, room_bytes=ROOMY) for case in BY_ROW]
    cases += [replace(case, shapes=short) for case in BY_ROW]
    cases += [replace(case, shapes=many, copies=300, room_bytes=ROOMY) for case in (BY_ROW[0], SPARSIFY[0])]
    results = measure(cases, folder)
    check(results)
    assert results[0].held == 2  # a row is one block, so that streaming would save nothing


@pytest.mark.parametrize(("dtype", "out_dtype"), [("F64", "F64"), ("F16", "F32")])
def test_other_element_types(dtype: str, out_dtype: str, folder: Path) -> None:
    chosen = (replace(SPARSIFY[0], count=7), replace(GRAM[0], count=9), SPARSIFY[7], LOCAL[4])
    cases = [
        replace(case, shapes=((400, 3000),), copies=2, dtype=dtype, out_dtype=out_dtype, room_bytes=room, threads=2)
        for case in chosen
        for room in (10 * MIB, ROOMY)
    ]
    check(measure(cases, folder))


def test_tasks_between_objects_stay_within_the_projection(s3: S3Server) -> None:
    """Range requests go straight into the buffers, and parts wait in as many as were counted."""
    chosen = (SPARSIFY[0], GRAM[1], LOCAL[3])
    cases = [replace(case, shapes=((4000, 6000),) * 2, room_bytes=40 * MIB) for case in chosen]
    cases += [replace(case, shapes=((1000, 3000),) * 6, room_bytes=40 * MIB, threads=2) for case in chosen]
    check(measure(cases, s3.folder()))


def test_every_method_is_measured() -> None:
    assert {case.method for case in (*GRAM, *SPARSIFY, *LOCAL)} == {*all_methods(), "copy"}
