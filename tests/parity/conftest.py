"""Makes `golden` and `parity` importable, and merges each golden recipe once for all tests that look at the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.cases import Case, with_paths
from golden.inputs import SHAPES, make_models, read_safetensors, write_models
from golden.table import CASES
from parity.whole_model import merge_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What raymerge made of a case: tensors as float32 or wider, and their stored types."""

    tensors: Mapping[str, np.ndarray]
    dtypes: Mapping[str, str]


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Merged]:
    folder = tmp_path_factory.mktemp("parity")

    @cache
    def inputs(group: str) -> dict[str, Path]:
        return write_models(folder / group, SHAPES[group])

    @cache
    def merge(name: str) -> Merged:
        import raymerge
        from raymerge.methods import all_methods

        case: Case = CASES[name]
        if case.method not in all_methods():
            pytest.skip(f"raymerge has no method {case.method} yet")
        out = folder / "out" / name
        raymerge.merge(with_paths(case.recipe, inputs(case.group)), str(out), executor="inline")
        tensors, dtypes = read_safetensors(out)
        return Merged(tensors=tensors, dtypes=dtypes)

    return merge


@pytest.fixture(scope="session")
def exact() -> Callable[[str], Mapping[str, np.ndarray]]:
    """The float64 oracle's result of a case, not rounded."""

    @cache
    def models(group: str) -> dict[str, dict[str, np.ndarray]]:
        return make_models(SHAPES[group])

    @cache
    def compute(name: str) -> Mapping[str, np.ndarray]:
        return merge_model(CASES[name].recipe, models(CASES[name].group))

    return compute
