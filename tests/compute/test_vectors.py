"""Whole vectors are asked of the compiler where they pay, and never against what the environment says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raymerge.compute.vectors import host_features, wide_vectors

SKYLAKE = "+avx2,+avx512f,+avx512vl,-avx512vbmi2"
ICE_LAKE = "+avx2,+avx512f,+avx512vl,+avx512vbmi2"


@pytest.mark.parametrize("features", ["", "+neon", "+avx2", SKYLAKE])
def test_a_processors_own_choice_stays_where_it_is_the_better_one(features: str) -> None:
    assert wide_vectors(features) == features


def test_vectors_are_whole_since_ice_lake() -> None:
    assert wide_vectors(ICE_LAKE) == f"{ICE_LAKE},-prefer-256-bit"


@pytest.mark.parametrize("named", [{}, {"NUMBA_CPU_FEATURES": ""}, {"NUMBA_CPU_NAME": "generic"}])
def test_the_environment_has_the_last_word(named: dict[str, str]) -> None:
    code = "import raymerge.compute.jit, numba; print(numba.config.CPU_FEATURES)"
    outer = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")}
    done = subprocess.run([sys.executable, "-c", code], env=outer | named, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ("" if named else host_features())
