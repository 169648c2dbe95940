"""breadcrumbs, della, sce, nearswap, arcee_fusion and ram against their formulas, and at their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import selective_oracles as oracle
from method_harness import assert_well_rounded, bf16_models, float_models, make_inputs, run_method, written

from raymerge.compute import Operations, open_operations
from raymerge.compute.cpu_operations import CpuOperations
from raymerge.compute.operations import PackedMask
from raymerge.errors import UsageError
from raymerge.methods import method, sparsify
from raymerge.methods.sparsify import keep_by_rank

WEIGHT = (0.9, -0.4, 0.5)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize(
    ("density", "gamma"),
    [
        ((0.5, 0.3, 0.9), (0.01, 0.2, 0.05)),
        ((1.0, 0.9, 0.5), (0.5, 0.3, 0.0)),
        ((0.0, 1e-9, 0.5), (0.01, 0.01, 1.0)),
        ((0.3, 0.3, 2.0), (1e-9, -1.0, 3.0)),
    ],
    ids=["usual", "too few below", "none kept", "none dropped"],
)
@pytest.mark.parametrize("rescale", [True, False])
def test_breadcrumbs(name: str, density: tuple[float, ...], gamma: tuple[float, ...], rescale: bool) -> None:
    x, base = bf16_models(3, 10_000)
    each = {"weight": WEIGHT, "density": density, "gamma": gamma}
    exact = oracle.breadcrumbs(
        x, base, WEIGHT, density, tuple(max(0, g) for g in gamma), signs=name == "breadcrumbs_ties", rescale=rescale
    )
    assert_well_rounded(run_method(name, x, base, each=each, rescale=rescale, block=4096), exact)


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize("shape", [(40, 150), (700,), (300, 1), (4, 5, 30)])
def test_della(name: str, shape: tuple[int, ...]) -> None:
    x, base = bf16_models(3, shape)
    density, epsilon = (0.5, 0.3, 0.8), (0.15, 0.1, 0.19)
    each = {"weight": (0.9, 0.4, 0.5), "density": density, "epsilon": epsilon}
    exact = oracle.della(x, base, each["weight"], density, epsilon, signs=name == "della", normalize=name == "della")
    assert_well_rounded(run_method(name, x, base, each=each, block=4096), exact)


@pytest.mark.parametrize(
    "shared", [{"rescale": False}, {"rescale_mode": "density"}, {"normalize": False}, {"lambda": 0.5}], ids=str
)
def test_della_settings(shared: dict[str, Any]) -> None:
    x, base = bf16_models(2, (30, 200))
    each = {"weight": (0.9, 0.4), "density": (0.5, 0.3), "epsilon": (0.15, 0.1)}
    settings = {"normalize": True} | {("lam" if key == "lambda" else key): value for key, value in shared.items()}
    exact = oracle.della(x, base, *each.values(), signs=True, **settings)
    assert_well_rounded(run_method("della", x, base, each=each, **shared), exact)


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.1), (0.1, 0.1), (0.0, 0.0), (0.05, 0.15)])
@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_refuses_probabilities_outside_zero_and_one(name: str, density: float, epsilon: float) -> None:
    values = {"weight": 1.0, "density": density, "epsilon": epsilon}
    check = method(name).check
    assert check is not None
    assert "inside (0, 1)" in (check({"normalize": False}, (values,)) or "")
    x, base = float_models(1, 10)
    with pytest.raises(UsageError, match="inside"):
        run_method(name, x, base, each={key: (value,) for key, value in values.items()})


def count_drawn(monkeypatch: pytest.MonkeyPatch, kind: type[Operations]) -> list[int]:
    """How many elements every mask by rank has, as they are drawn from now on."""
    drawn: list[int] = []
    draw = kind.rank_mask

    def count(self: Operations, x: Any, *rest: Any, **named: Any) -> Any:
        drawn.append(len(x))
        return draw(self, x, *rest, **named)

    monkeypatch.setattr(kind, "rank_mask", count)
    return drawn


def test_masks_that_take_whole_bytes_are_kept_in_the_same_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 25,600 elements a bit each: three masks of 1024 bytes, and the result is that of the packed ones."""
    x, base = bf16_models(2, (400, 64))
    options: dict[str, Any] = {"each": {"weight": (0.9, 0.4), "density": (0.5, 0.3)}, "block": 1024}
    drawn = count_drawn(monkeypatch, type(open_operations("torch:cpu")))
    result = run_method("della", x, base, device="torch:cpu", **options)
    assert sum(drawn) == 2 * (2 * base.size - 3 * 1024)
    assert np.array_equal(result, run_method("della", x, base, **options))


@pytest.mark.parametrize("most", [0, 3 * 4096 // 8 + 5, 3 * 10_000])
def test_della_is_the_same_however_many_of_its_masks_are_kept(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counted once: drawn for the scales, it is taken from what is kept or drawn again."""
    x, base = bf16_models(3, (400, 64))
    each = {"weight": (0.9, 0.4, 0.5), "density": (0.5, 0.3, 0.8), "epsilon": (0.15, 0.1, 0.19)}
    monkeypatch.setattr(sparsify, "MOST_MASK_BYTES", most)
    exact = oracle.della(x, base, *each.values(), signs=True, normalize=True)
    drawn = count_drawn(monkeypatch, CpuOperations)
    assert_well_rounded(run_method("della", x, base, each=each, block=4096), exact)
    again = {0: 3 * base.size, 3 * 10_000: 0}.get(most, 3 * (base.size - 4096))
    assert sum(drawn) == 3 * base.size + again


@pytest.mark.parametrize(("most", "elements"), [(0, 0), (3 * 8192 // 8 + 5, 6144), (3 * 10_000, 401 * 63)])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_is_the_same_however_many_of_its_masks_are_kept(
    name: str, most: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn for the scales, a block's mask is taken from what is kept, or drawn again where not all of it is."""
    x, base = bf16_models(3, (401, 63))
    options: dict[str, Any] = {"each": {"weight": (0.9, 0.4, 0.5), "density": (0.5, 0.3, 1.0)}}
    expected = run_method(name, x, base, device="torch:cpu", **options)
    monkeypatch.setattr(sparsify, "MOST_MASK_BYTES", most)
    inputs, scan = make_inputs(name, x, base, block=8192, **options)
    combine = method(name).merge(inputs)
    taken: list[int] = []
    part = PackedMask.part

    def count(self: PackedMask, start: int, size: int) -> PackedMask:
        taken.append(size)
        return part(self, start, size)

    monkeypatch.setattr(PackedMask, "part", count)
    scan.block = 6144
    result = np.concatenate([combine(block) for block in scan(False)])
    assert result.tobytes() == expected.tobytes()
    assert sum(taken) == 2 * elements


def test_della_of_density_one_keeps_everything() -> None:
    x, base = bf16_models(1)
    assert np.array_equal(run_method("della", x, base, each={"weight": [1.0]}), x[0])


def test_della_keeps_by_rank_at_the_declared_rates() -> None:
    """Per row, and per place within rows, within four (rows) and five (places) standard deviations."""
    rng = np.random.default_rng(0)
    base = np.zeros((4000, 64), np.float32)
    x = rng.normal(size=base.shape).astype(np.float32)
    inputs, scan = make_inputs("della", [x], base, each={"weight": [1], "density": [0.5], "epsilon": [0.4]})
    (keep,) = keep_by_rank(inputs)()
    mask = np.concatenate([written(keep(block, 0), block.count) for block in scan(True)]).reshape(base.shape)
    place = np.argsort(np.argsort(-np.abs(x), axis=1, kind="stable"), axis=1)
    expected = 0.5 - 0.4 + 0.8 * (1 - place / 63)
    sigma = np.sqrt((expected * (1 - expected)).sum(1))
    assert np.all(np.abs(mask.sum(1) - expected.sum(1)) < 4.5 * sigma)
    for p in range(64):
        chosen = mask[place == p]
        rate = 0.5 - 0.4 + 0.8 * (1 - p / 63)
        assert abs(chosen.mean() - rate) < 5 * (rate * (1 - rate) / chosen.size) ** 0.5


@pytest.mark.parametrize("select_topk", [1.0, 0.5, 0.1, 0.0, 1e-9])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sce(select_topk: float, count: int) -> None:
    x, base = bf16_models(count, 10_000)
    assert_well_rounded(
        run_method("sce", x, base, select_topk=select_topk, block=4096), oracle.sce(x, base, select_topk)
    )


def test_sce_selects_only_where_models_differ() -> None:
    x, base = float_models(1, 100)
    other = x[0].copy()
    other[:10] += 1
    result = run_method("sce", [x[0], other], base, select_topk=0.99)
    changed = np.flatnonzero(result != base)
    assert len(changed) == 9
    assert set(changed) <= set(range(10))


@pytest.mark.parametrize("t", [1e-4, 1e-2, 0.0, -1.0, 1e-9])
def test_nearswap(t: float) -> None:
    x, base = bf16_models(1)
    assert_well_rounded(run_method("nearswap", x, base, t=t), oracle.nearswap(x[0], base, t))


@pytest.mark.parametrize("shape", [(60, 70), (3, 4, 50), (999,), (50, 1)])
@pytest.mark.parametrize("models", [bf16_models, float_models])
def test_arcee_fusion(shape: tuple[int, ...], models: Any) -> None:
    x, base = models(1, shape)
    found = run_method("arcee_fusion", x, base, block=4096)
    wrong = found != oracle.arcee_fusion(x[0], base)
    assert np.mean(wrong) <= 2e-4, "beyond what last bits of the importance at the threshold explain"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.0])
def test_ram(count: int, epsilon: float) -> None:
    x, base = bf16_models(count)
    assert_well_rounded(run_method("ram", x, base, epsilon=epsilon), oracle.ram(x, base, epsilon))


@pytest.mark.parametrize("shared", [{}, {"r": 0.5, "alpha": 1.0}, {"alpha": 0.0}, {"epsilon": 1.0}], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_ramplus_tl(shared: dict[str, Any], count: int) -> None:
    x, base = bf16_models(count, seed=5)
    shared = {"epsilon": 1e-3} | shared
    assert_well_rounded(run_method("ramplus_tl", x, base, **shared), oracle.ramplus_tl(x, base, **shared))
