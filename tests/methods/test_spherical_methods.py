"""nuslerp, multislerp, karcher and model_stock against their formulas, and at the edges of angles and norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import spherical_oracles as oracle
from method_harness import assert_well_rounded, bf16_models, float_models, run_method

from raymerge.errors import RaymergeError

SHAPES = [(60, 70), (5, 6, 70), (2000,), (300, 1)]


def close(result: np.ndarray, exact: np.ndarray) -> None:
    np.testing.assert_allclose(result, exact, rtol=2**-23, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize(("flatten", "row_wise"), [(True, False), (False, False), (False, True)])
def test_nuslerp(shape: tuple[int, ...], has_base: bool, flatten: bool, row_wise: bool) -> None:
    x, base = float_models(2, shape, spread=1.0)
    given, weight = (base if has_base else None), (0.7, 0.4)
    result = run_method(
        "nuslerp", x, given, each={"weight": weight}, nuslerp_flatten=flatten, nuslerp_row_wise=row_wise, block=4096
    )
    np.testing.assert_allclose(
        result, oracle.nuslerp(x, given, weight, flatten=flatten, row_wise=row_wise), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("weight", [(0.7, 0.4), (1.0, -0.9), (1.0, -1.0), (0.0, 0.0)])
def test_nuslerp_is_well_rounded(weight: tuple[float, ...]) -> None:
    x, base = bf16_models(2)
    for given in (base, None):
        assert_well_rounded(run_method("nuslerp", x, given, each={"weight": weight}), oracle.nuslerp(x, given, weight))


@pytest.mark.parametrize(
    ("a", "b"),
    [((1, 2, 3), (1, 2, 3)), ((1, 2, 3), (-1, -2, -3)), ((0, 0, 0), (1, 2, 3)), ((0, 0), (0, 0)), ((1, 0), (0, 1))],
    ids=["same", "opposite", "zero", "zeros", "orthogonal"],
)
@pytest.mark.parametrize("flatten", [True, False])
def test_nuslerp_edges(a: tuple[float, ...], b: tuple[float, ...], flatten: bool) -> None:
    x = [np.array([a], np.float32), np.array([b], np.float32)]
    result = run_method("nuslerp", x, each={"weight": (0.75, 0.25)}, nuslerp_flatten=flatten)
    close(result, oracle.nuslerp(x, None, (0.75, 0.25)))


@pytest.mark.parametrize("weight", [(0.5, 0.3, 0.4), (1.0, -0.999, 0.3), (2.0, 0.0, 1.0)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("has_base", [True, False])
def test_multislerp(weight: tuple[float, ...], normalize: bool, has_base: bool) -> None:
    x, base = bf16_models(3)
    given = base if has_base else None
    result = run_method("multislerp", x, given, each={"weight": weight}, normalize_weights=normalize)
    assert_well_rounded(result, oracle.multislerp(x, given, weight, normalize=normalize))


def test_multislerp_takes_eps_as_documented() -> None:
    x, base = float_models(3)
    result = run_method("multislerp", x, base, each={"weight": (1, 2, 3)}, eps=0.01)
    close(result, oracle.multislerp(x, base, (1, 2, 3), eps=0.01))


def test_multislerp_of_opposite_models_is_their_linear_mean() -> None:
    a = np.array([1, 2, 3], np.float32)
    result = run_method("multislerp", [a, -2 * a], each={"weight": (0.5, 0.5)})
    close(result, -0.5 * a.astype(np.float64))


def test_multislerp_of_vectors_that_cancel_is_an_error() -> None:
    angles = np.array([0, 2, 4]) * np.pi / 3
    x = [np.array([np.cos(a), np.sin(a)]) for a in angles]
    with pytest.raises(RaymergeError, match="no direction"):
        run_method("multislerp", x, each={"weight": (1.0, 1.0, 1.0)})


def test_multislerp_where_nothing_changed_is_the_base() -> None:
    _, base = float_models(1)
    assert np.array_equal(run_method("multislerp", [base] * 3, base, each={"weight": (1, 2, 3)}), base)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("shared", [{}, {"max_iter": 0}, {"max_iter": 2}, {"tol": 1e-9, "max_iter": 50}], ids=str)
def test_karcher(count: int, shared: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    x = [rng.normal(0.3, 1, 3000).astype(np.float32) * (i + 1) for i in range(count)]
    close(run_method("karcher", x, **shared), oracle.karcher(x, **shared))


def test_karcher_is_well_rounded() -> None:
    x, _ = bf16_models(3, spread=0.7)
    assert_well_rounded(run_method("karcher", x), oracle.karcher(x))


def test_karcher_of_zero_tensors_and_of_opposites() -> None:
    a = np.array([3, 4, 0], np.float32)
    close(run_method("karcher", [a, 0 * a]), a / 2)
    close(run_method("karcher", [0 * a, 0 * a]), 0 * a)
    close(np.abs(run_method("karcher", [a, -a])), np.abs(a))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_model_stock(shape: tuple[int, ...], filter_wise: bool, count: int) -> None:
    x, base = float_models(count, shape, spread=0.5)
    common = np.random.default_rng(9).normal(0, 0.02, shape).astype(np.float32)
    x = [each + common for each in x]
    result = run_method("model_stock", x, base, filter_wise=filter_wise, block=4096)
    np.testing.assert_allclose(result, oracle.model_stock(x, base, filter_wise=filter_wise), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("filter_wise", [True, False])
def test_model_stock_is_well_rounded(filter_wise: bool) -> None:
    x, base = bf16_models(3, (100, 200))
    result = run_method("model_stock", x, base, filter_wise=filter_wise)
    assert_well_rounded(result, oracle.model_stock(x, base, filter_wise=filter_wise))


def test_model_stock_of_opposite_changes_is_the_base() -> None:
    base = np.zeros(4, np.float32)
    change = np.array([1, 2, 3, 4], np.float32)
    assert np.array_equal(run_method("model_stock", [change, -change], base), base)
