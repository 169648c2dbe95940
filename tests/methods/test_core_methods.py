"""The seven methods of most recipes: their formulas, rounding, edges and block sizes."""

from __future__ import annotations

from typing import Any

import method_oracles as oracle
import numpy as np
import pytest
from method_harness import assert_well_rounded, bf16_models, float_models, make_inputs, run_method

from raymerge.errors import UsageError
from raymerge.methods import Base, all_methods, method

WEIGHTS = [(0.5, 0.3, 0.2), (1.0, -0.999, 0.01), (0.1, 0.2, -0.3), (2.0, 0.0, 1.0)]
CANCELLING = (1.0, -0.999, 0.01)


def close(result: np.ndarray, exact: np.ndarray) -> None:
    """float32 output: correctly rounded but for what float64 loses."""
    np.testing.assert_allclose(result, exact, rtol=2**-23, atol=1e-12)


@pytest.mark.parametrize("weight", [(0.5, 0.3, 0.2), CANCELLING, (2.0, 0.0, 1.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear(weight: tuple[float, ...], normalize: bool) -> None:
    x, _ = bf16_models(3)
    result = run_method("linear", x, each={"weight": weight}, normalize=normalize)
    assert_well_rounded(result, oracle.linear(x, weight, normalize))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_task_arithmetic(weight: tuple[float, ...]) -> None:
    x, base = bf16_models(3)
    result = run_method("task_arithmetic", x, base, each={"weight": weight}, **{"lambda": 0.7})
    assert_well_rounded(result, oracle.task_arithmetic(x, base, weight, lam=0.7))


def test_task_arithmetic_normalized() -> None:
    x, base = float_models(2)
    result = run_method("task_arithmetic", x, base, each={"weight": (1.0, 3.0)}, normalize=True)
    close(result, oracle.task_arithmetic(x, base, (1.0, 3.0), normalize=True))


@pytest.mark.parametrize("weight", [(1.0, -1.0, 0.0), (0.1, 0.2, -0.3)])
def test_models_whose_weights_sum_to_zero_have_no_mean(weight: tuple[float, ...]) -> None:
    x, _ = float_models(3, 10)
    check = method("linear").check
    assert check is not None
    assert "sum to 0" in (check({"normalize": True}, [{"weight": w} for w in weight]) or "")
    assert check({"normalize": False}, [{"weight": w} for w in weight]) is None
    with pytest.raises(UsageError, match="sum to 0"):
        run_method("linear", x, each={"weight": weight})


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear"])
def test_changes_whose_weights_sum_to_zero_are_not_divided(name: str) -> None:
    x, base = float_models(2, 10)
    result = run_method(name, x, base, each={"weight": (1.0, -1.0)}, normalize=True)
    close(result, oracle.task_arithmetic(x, base, (1.0, -1.0)))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(t: float) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=9000).astype(np.float32) for _ in range(2))
    close(run_method("slerp", [a, b], t=t), oracle.slerp(a, b, t))


@pytest.mark.parametrize(
    ("a", "b"),
    [((1, 2, 3), (1, 2, 3)), ((1, 2, 3), (-1, -2, -3)), ((0, 0, 0), (1, 2, 3)), ((0, 0), (0, 0)), ((1, 0), (0, 1))],
    ids=["same", "opposite", "zero", "zeros", "orthogonal"],
)
def test_slerp_edges(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    first, second = np.array(a, np.float32), np.array(b, np.float32)
    close(run_method("slerp", [first, second], t=0.25), oracle.slerp(first, second, 0.25))


def test_slerp_is_well_rounded() -> None:
    (a, b), _ = bf16_models(2, spread=0.5)
    assert_well_rounded(run_method("slerp", [a, b], t=0.4), oracle.slerp(a, b, 0.4))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("density", [(0.5, 0.3, 0.9), (1.0, 0.2, 0.0), (1e-9, 0.5, 2.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties(weight: tuple[float, ...], density: tuple[float, ...], normalize: bool) -> None:
    x, base = bf16_models(3)
    result = run_method("ties", x, base, each={"weight": weight, "density": density}, normalize=normalize)
    assert_well_rounded(result, oracle.ties(x, base, weight, density, normalize))


@pytest.mark.parametrize(
    "shared",
    [{"rescale": True}, {"lambda": 0.3}, {"consensus": "count"}, {"rescale": True, "normalize": False}],
    ids=str,
)
def test_ties_settings(shared: dict[str, Any]) -> None:
    x, base = bf16_models(3)
    weight, density = (0.9, 0.5, 0.4), (0.5, 0.25, 0.75)
    result = run_method("ties", x, base, each={"weight": weight, "density": density}, **shared)
    settings = {("lam" if key == "lambda" else key): value for key, value in shared.items()}
    assert_well_rounded(result, oracle.ties(x, base, weight, density, **settings))


def test_ties_keeps_the_first_of_equal_changes() -> None:
    base = np.zeros(10_000, np.float32)
    change = np.tile(np.float32([1, -1]), 5000)
    result = run_method("ties", [change], base, each={"weight": [1.0], "density": [0.4321]}, block=4096)
    assert np.array_equal(np.flatnonzero(result), np.arange(4321))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize(
    "shared",
    [{}, {"rescale": False}, {"rescale_mode": "density"}, {"normalize": True}, {"lambda": 1.5}],
    ids=str,
)
def test_dare(name: str, shared: dict[str, Any]) -> None:
    x, base = bf16_models(3, 6000)
    weight, density = (0.5, 0.3, 0.4), (0.5, 0.1, 0.9)
    result = run_method(name, x, base, each={"weight": weight, "density": density}, **shared)
    settings = {("lam" if key == "lambda" else key): value for key, value in shared.items()}
    assert_well_rounded(result, oracle.dare(x, base, weight, density, signs=name == "dare_ties", **settings))


@pytest.mark.parametrize("density", [0.0, -1.0])
def test_dare_of_density_zero_is_the_base(density: float) -> None:
    x, base = float_models(2)
    result = run_method("dare_linear", x, base, each={"weight": (1.0, 1.0), "density": (density, density)})
    assert np.array_equal(result, base)


def test_passthrough() -> None:
    (x,), _ = float_models(1)
    assert np.array_equal(run_method("passthrough", [x]), x)
    assert np.array_equal(run_method("passthrough", [x], each={"scale": [0.5]}), x / 2)


CASES: dict[str, dict[str, Any]] = {
    "linear": {"each": {"weight": (0.5, 0.3, 0.2)}},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"each": {"weight": (0.5, 0.3, 0.2)}},
    "ties": {"each": {"weight": (0.5, 0.3, 0.2), "density": (0.5, 0.2, 0.8)}, "rescale": True},
    "dare_linear": {"each": {"weight": (0.5, 0.3, 0.2), "density": (0.5, 0.2, 0.8)}},
    "dare_ties": {"each": {"weight": (0.5, 0.3, 0.2), "density": (0.5, 0.2, 0.8)}},
    "passthrough": {},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("models", [bf16_models, float_models])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_any_block_size_gives_the_same_bytes(name: str, models: Any, kind: Any) -> None:
    declared = method(name)
    x, base = models(min(3, declared.max_inputs or 3), 50_001)
    x, base = [each.astype(kind) for each in x], base.astype(kind)
    given = base if declared.base is Base.REQUIRED else None
    results = [run_method(name, x, given, block=block, **CASES[name]).tobytes() for block in (4096, 8192, 131072)]
    assert results[0] == results[1] == results[2]


def test_the_registry_lists_methods_in_documented_order_and_suggests_names() -> None:
    assert list(all_methods())[:2] == ["linear", "slerp"]
    with pytest.raises(UsageError, match="Did you mean dare_ties"):
        method("dare-ties")


def test_an_unknown_method_among_none_alike_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match="known methods: linear"):
        method("qqqq")


def test_empty_tensors_merge_to_empty_ones() -> None:
    empty = np.empty((0, 4), np.float32)
    for name, options in CASES.items():
        declared = method(name)
        count = min(3, declared.max_inputs or 3)
        assert run_method(name, [empty] * count, empty if declared.base is Base.REQUIRED else None, **options).size == 0


def test_inputs_give_their_shape() -> None:
    x, _ = float_models(2, (3, 5))
    inputs, _ = make_inputs("linear", x, each={"weight": (1, 1)})
    assert (inputs.count, inputs.element_count, inputs.row_length) == (2, 15, 5)
