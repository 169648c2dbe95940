"""Gathered rows are those that the runs name, whatever part is asked for and however sources are stored."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import from_bfloat16, to_bfloat16, write_safetensors

from raymerge.checkpoint.nouns import TensorRef
from raymerge.checkpoint.open import open_checkpoint
from raymerge.checkpoint.row_runs import row_runs
from raymerge.checkpoint.steps import AddAdapter, GatherRows
from raymerge.compute.operations import open_operations
from raymerge.merging.gathering import pieces
from raymerge.merging.scan import Scanner, streamed_windows, window_sizes
from raymerge.planning.memory import MemoryRules, project, window_elements
from raymerge.planning.nouns import JobInput, TensorJob

ROWS, COLUMNS = 700, 19
Terms = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def sources(tmp_path: Path) -> tuple[tuple[TensorRef, ...], list[np.ndarray]]:
    """A plain bfloat16 matrix, a float32 one, and one that an adapter is added to; and their values."""
    random = np.random.default_rng(0)
    stored = {
        name: random.standard_normal(shape, dtype=np.float32)
        for name, shape in {"a": (500, COLUMNS), "b": (300, COLUMNS), "c": (200, COLUMNS), "up": (200, 2)}.items()
    }
    stored["down"] = random.standard_normal((2, COLUMNS), dtype=np.float32)
    codes = {name: "BF16" if name == "a" else "F32" for name in stored}
    write_safetensors(tmp_path / "model.safetensors", {name: (stored[name], codes[name]) for name in stored})
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    refs = open_checkpoint(str(tmp_path), revision=None, display="m", cwd=str(tmp_path)).tensors
    changed = replace(refs["c"], steps=(AddAdapter(down=refs["down"], up=refs["up"], scale=0.5),))
    values = [from_bfloat16(to_bfloat16(stored["a"])), stored["b"], stored["c"] + 0.5 * (stored["up"] @ stored["down"])]
    return (refs["a"], refs["b"], changed), values


def shuffled_terms(seed: int) -> Terms:
    """Rows from anywhere: long runs, single rows, rows that several sources give and rows that nobody gives."""
    random = np.random.default_rng(seed)
    kinds = [
        (np.arange(300), np.arange(40, 340)),
        (np.sort(random.choice(np.arange(250, 600), 200, replace=False)), random.permutation(300)[:200]),
        (np.sort(random.choice(ROWS, 150, replace=False)), random.integers(0, 200, 150)),
    ]
    return [(places.astype(np.int64), rows.astype(np.int64)) for places, rows in kinds]


def expected(values: list[np.ndarray], terms: Terms) -> np.ndarray:
    total, count = np.zeros((ROWS, COLUMNS)), np.zeros(ROWS)
    for source, (places, rows) in zip(values, terms, strict=True):
        for place, row in zip(places, rows, strict=True):
            total[place] += source[row]
            count[place] += 1
    return total / np.maximum(count, 1)[:, None]


def job_of(sources: tuple[TensorRef, ...], terms: Terms) -> TensorJob:
    gather = GatherRows(sources=sources, runs=row_runs(ROWS, terms), columns=COLUMNS)
    spec = replace(sources[0].spec, name="rows", shape=(ROWS, COLUMNS))
    ref = replace(sources[0], spec=spec, steps=(gather,))
    return TensorJob(output=spec, method="linear", inputs=(JobInput(ref=ref, parameters={"weight": 1.0}),))


def read_all(job: TensorJob, window: int, block: int) -> np.ndarray:
    sizes = window_sizes(job, window)
    buffers = [[np.empty(size, np.uint8) for size in sizes] for _ in range(2)]
    operations = open_operations("cpu")
    with ThreadPoolExecutor(2) as readers:
        scanner = Scanner(job, operations, block, lambda rows: streamed_windows(job, window, readers, buffers))
        return np.concatenate([np.array(each.x[0]) for each in scanner.scan(False)]).reshape(ROWS, COLUMNS)


@pytest.mark.parametrize("seed", range(4))
def test_any_window_and_block_gives_the_same_rows(
    seed: int, sources: tuple[tuple[TensorRef, ...], list[np.ndarray]]
) -> None:
    refs, values = sources
    terms = shuffled_terms(seed)
    job = job_of(refs, terms)
    whole = read_all(job, ROWS * COLUMNS, ROWS * COLUMNS)
    exact = expected(values, terms)
    assert np.abs(whole - exact).max() <= 2e-6
    alone = np.bincount(np.concatenate([places for places, _ in terms]), minlength=ROWS) == 1
    plain = terms[0][0][alone[terms[0][0]]]
    assert len(plain) > 20
    assert np.array_equal(whole[plain], values[0][plain + 40])
    for window, block in [(128, 64), (1000, 170), (COLUMNS * 7, 5), (4096, 4096), (ROWS * COLUMNS, 31)]:
        assert np.array_equal(read_all(job, window, block), whole), (window, block)


def test_rows_are_read_once_and_neighbours_together(sources: tuple[tuple[TensorRef, ...], list[np.ndarray]]) -> None:
    refs, _ = sources
    order = np.random.default_rng(5).permutation(500)
    ref = job_of(refs[:1], [(np.arange(500), order)]).refs[0]
    assert ref.nbytes == 500 * COLUMNS * 2
    found = pieces(ref, (0, ROWS * COLUMNS))
    assert [part.nbytes for piece in found for part in piece.parts] == [500 * COLUMNS * 2]
    few = pieces(ref, (0, 4 * COLUMNS))
    rows = [(part.offset - refs[0].offset) // (COLUMNS * 2) for piece in few for part in piece.parts]
    assert rows == sorted(order[:4].tolist())
    assert sum(part.nbytes for piece in few for part in piece.parts) == 4 * COLUMNS * 2


def test_windows_are_projected(sources: tuple[tuple[TensorRef, ...], list[np.ndarray]]) -> None:
    """What windows take is in the projection, where rows are the mean of several too."""
    refs, _ = sources
    job = job_of(refs, shuffled_terms(1))
    for window in (64, 1000, ROWS * COLUMNS):
        most = window_sizes(job, window)[0]
        for start in range(0, ROWS * COLUMNS, window):
            end = min(start + window, ROWS * COLUMNS)
            parts = [part for piece in pieces(job.refs[0], (start, end)) for part in piece.parts]
            assert max((part.into + part.nbytes for part in parts), default=0) <= most
    rules = MemoryRules(budget_bytes=0)
    window = window_elements(job, 0, rows=False)
    assert project((job,), rules).total_bytes >= 2 * window_sizes(job, window)[0]
