"""Laws that hold for every method, whatever its formula; a new method is tested by being registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from method_harness import bf16_models, float_models, make_inputs, run_method

from raymerge.methods import Base, Method, all_methods, method
from raymerge.methods.declaration import REQUIRED

METHODS = list(all_methods())
SETTINGS: dict[str, Any] = {"weight": 0.4, "density": 0.6, "t": 0.3, "epsilon": 1e-3, "gamma": 0.1, "select_topk": 0.5}
ARBITRARY = {"nearswap", "arcee_fusion"}  # choose between two models by entry, not by weight


def settings_of(declared: Method, count: int, **changed: Any) -> dict[str, Any]:
    """Options of run_method: typical values for what the method declares, defaults for what is not in SETTINGS."""
    values = SETTINGS | ({"epsilon": 0.1} if declared.name.startswith("della") else {}) | changed
    options: dict[str, Any] = {"each": {}}
    for parameter in declared.parameters:
        if parameter.name not in values:
            assert parameter.default is not REQUIRED, "a required parameter needs a value here"
            continue
        value = values[parameter.name]
        if parameter.per_input:
            spread = value if isinstance(value, Sequence) else [value * (1 + 0.2 * i) for i in range(count)]
            options["each"][parameter.name] = spread
        else:
            options[parameter.name] = value
    return options


def count_of(declared: Method) -> int:
    return min(3, declared.max_inputs or 3)


def merge(
    name: str, x: Sequence[np.ndarray], base: np.ndarray, *, block: int = 131072, device: str = "cpu", **changed: Any
):
    declared = method(name)
    given = base if declared.base in (Base.REQUIRED, Base.OPTIONAL) else None
    return run_method(name, x, given, block=block, device=device, **settings_of(declared, len(x), **changed))


@pytest.mark.parametrize("name", METHODS)
def test_a_declaration_is_complete(name: str) -> None:
    declared = method(name)
    assert declared.summary
    assert declared.formula
    assert declared.source
    assert not declared.summary.endswith(".")
    assert len({parameter.name for parameter in declared.parameters}) == len(declared.parameters)
    assert all(parameter.help for parameter in declared.parameters)
    for parameter in declared.parameters:
        if parameter.default not in (REQUIRED, None):
            assert isinstance(parameter.default, parameter.kind)
        if parameter.default is REQUIRED:
            assert parameter.name in declared.example
    for key, value in declared.example.items():
        assert isinstance(value, list) == declared.parameter(key).per_input


@pytest.mark.parametrize("name", METHODS)
def test_the_example_runs(name: str) -> None:
    declared = method(name)
    count = max(declared.min_inputs, min(2, declared.max_inputs or 2))
    x, base = float_models(count, (20, 30))
    each = {key: value for key, value in declared.example.items() if declared.parameter(key).per_input}
    shared = {key: value for key, value in declared.example.items() if key not in each}
    given = base if declared.base is Base.REQUIRED else None
    assert np.isfinite(run_method(name, x, given, each=each, **shared)).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_any_block_size_gives_the_same_bytes(name: str, kind: Any) -> None:
    for shape in ((50_001,), (130, 257), (6, 5, 700)):
        x, base = bf16_models(count_of(method(name)), shape)
        x, base = [each.astype(kind) for each in x], base.astype(kind)
        results = [merge(name, x, base, block=block).tobytes() for block in (4096, 8192, 131072)]
        assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "arcee_fusion"])
@pytest.mark.parametrize("models", [bf16_models, float_models])
def test_every_device_gives_the_same_bytes(name: str, models: Any) -> None:
    for shape, kind in (((9_001,), np.float32), ((90, 131), np.float32), ((30, 70), np.float64)):
        x, base = models(count_of(method(name)), shape)
        x, base = [each.astype(kind) for each in x], base.astype(kind)
        found = [merge(name, x, base, device=device).tobytes() for device in ("cpu", "torch:cpu")]
        assert found[0] == found[1]


def test_arcee_fusion_differs_between_devices_at_the_threshold_alone() -> None:
    x, base = float_models(1, (130, 257))
    found = [merge("arcee_fusion", x, base, device=device) for device in ("cpu", "torch:cpu")]
    assert np.mean(found[0] != found[1]) < 2e-4


@pytest.mark.parametrize("name", METHODS)
def test_copies_of_one_model_merge_to_it(name: str) -> None:
    """With weights that sum to 1 and nothing dropped."""
    declared = method(name)
    (x, *_), base = bf16_models(1, (80, 90))
    count = count_of(declared)
    if declared.base is Base.REQUIRED and count == 1:
        x = base  # between two models, copies are a copy of the base
    weight = [0.5, 0.25, 0.25] if count == 3 else [1 / count] * count
    result = merge(name, [x] * count, base, weight=weight, density=1.0, gamma=0.0, select_topk=1.0, epsilon=0.0)
    if name == "model_stock":
        np.testing.assert_allclose(result, x, rtol=1e-6)
    else:
        np.testing.assert_allclose(result, x, rtol=2**-23)


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).base is Base.REQUIRED])
def test_copies_of_the_base_merge_to_it(name: str) -> None:
    _, base = bf16_models(1, (80, 90))
    assert np.array_equal(merge(name, [base] * count_of(method(name)), base), base)


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).parameter("density")])
def test_density_one_is_the_identity(name: str) -> None:
    """One model at weight 1, nothing dropped: its own bits come out."""
    (x,), base = float_models(1, (80, 90))
    result = merge(name, [x], base, weight=1.0, density=1.0, gamma=0.0, epsilon=0.1)
    np.testing.assert_allclose(result, x, rtol=2**-24)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if method(name).max_inputs is None and not method(name).random]
)
def test_the_order_of_models_does_not_matter(name: str) -> None:
    """With their parameters; also where weights cancel and magnitudes tie."""
    x, base = bf16_models(3, (80, 90))
    weight, density, gamma = [0.3, 0.2, 0.1], [0.5, 0.9, 0.3], [0.1, 0.2, 0.05]
    order = [2, 0, 1]
    first = merge(name, x, base, weight=weight, density=density, gamma=gamma)
    again = merge(name, [x[i] for i in order], base, weight=[weight[i] for i in order],
                  density=[density[i] for i in order], gamma=[gamma[i] for i in order])  # fmt: skip
    np.testing.assert_allclose(again, first, rtol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("nearswap", "ram", "ramplus_tl", "arcee_fusion")]
)
def test_scaling_every_model_scales_the_result(name: str) -> None:
    x, base = bf16_models(count_of(method(name)), (80, 90))
    result = merge(name, x, base)
    scaled = merge(name, [8 * each for each in x], 8 * base)
    np.testing.assert_allclose(scaled, 8 * result, rtol=2**-22)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_finite_models_give_finite_results(name: str, size: float) -> None:
    rng = np.random.default_rng(0)
    count = count_of(method(name))
    x = [(rng.normal(size=(40, 50)) * size).astype(np.float32) for _ in range(count)]
    assert np.isfinite(merge(name, x, (rng.normal(size=(40, 50)) * size).astype(np.float32))).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5, 1), (1, 5), (0,), (3, 0), (0, 3)])
def test_any_shape_merges(name: str, shape: tuple[int, ...]) -> None:
    x, base = float_models(count_of(method(name)), shape)
    x, base = [np.asarray(each, np.float32) for each in x], np.asarray(base, np.float32)
    assert merge(name, x, base).shape == shape


@pytest.mark.parametrize("name", METHODS)
def test_not_a_number_is_not_hidden(name: str) -> None:
    x, base = float_models(count_of(method(name)), (40, 50))
    x[0][3, 4] = np.nan
    assert np.isnan(merge(name, x, base, density=1.0, select_topk=1.0, gamma=0.0)[3, 4])


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).random])
def test_randomness_follows_seed_and_name_alone(name: str) -> None:
    x, base = float_models(2, (40, 50))
    options = settings_of(method(name), 2)
    first = run_method(name, x, base, **options)
    assert np.array_equal(first, run_method(name, x, base, **options))
    assert not np.array_equal(first, run_method(name, x, base, seed=1, **options))
    assert not np.array_equal(first, run_method(name, x, base, tensor="other", **options))


@pytest.mark.parametrize(
    "name", [name for name in METHODS if method(name).random and method(name).parameter("rescale_mode")]
)
def test_rescaling_by_density_keeps_the_expected_change(name: str) -> None:
    base = np.zeros((1000, 300), np.float32)
    change = np.ones_like(base)
    result = merge(
        name,
        [change],
        base,
        weight=1.0,
        density=0.3,
        epsilon=0.1,
        rescale=True,
        rescale_mode="density",
        normalize=False,
    )
    sigma = (0.7 / 0.3 / base.size) ** 0.5
    assert abs(result.mean() - 1) < 4 * sigma


def test_every_method_declares_its_passes() -> None:
    """run_method asserts the bound; here a method that makes none must also say none."""
    x, _ = float_models(2, 100)
    inputs, scan = make_inputs("linear", x, each={"weight": (1, 1)})
    method("linear").merge(inputs)
    assert scan.passes == method("linear").passes == 0
