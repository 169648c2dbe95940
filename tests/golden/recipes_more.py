"""Golden recipes of the methods beyond the core ones, and of every method on large tensors."""

from __future__ import annotations

from golden.cases import Case, Recipe, cut, models, slices, source, where
from golden.recipes_core import weighted

CERTAIN = 0.999999999  # so dense that no entry is ever dropped, which is all a random method can be compared on


DIFFERS = {
    "arcee_fusion/odd_near": "divergences of nearly equal rows lose digits in its float32 sums; the threshold moves"
}


def nuslerp() -> dict[str, Recipe]:
    method = "nuslerp"
    pair = (source("a", weight=0.6), source("b", weight=0.9))
    return {
        "weights": models(method, *pair),
        "base": models(method, *pair, base="base"),
        "base_listed": models(method, source("base"), *pair, base="base"),
        "not_flat": models(method, *pair, nuslerp_flatten=False),
        "row_wise": models(method, *pair, nuslerp_flatten=False, nuslerp_row_wise=True),
        "row_wise_base": models(method, *pair, base="base", nuslerp_flatten=False, nuslerp_row_wise=True),
        "not_flat_base": models(method, *pair, base="base", nuslerp_flatten=False),
        "row_wise_flat": models(method, *pair, nuslerp_row_wise=True),
        "weights_cancel": models(method, source("a", weight=1), source("b", weight=-1)),
        "negative_weight": models(method, source("a", weight=1), source("b", weight=-0.25)),
        "near_parallel": models(method, source("base", weight=1), source("near", weight=2)),
        "same_deltas": models(method, source("a", weight=1), source("b", weight=[0, 1]), base="base"),
        "slices": slices(
            method,
            cut(source("a", (0, 2), weight=[0, 1]), source("b", (0, 2), weight=where(mlp=0.3, rest=1))),
            cut(source("a", (1, 2), weight=1), source("c", (1, 2), weight=2)),
        ),
    }


def multislerp() -> dict[str, Recipe]:
    method = "multislerp"
    return {
        "weights": models(method, *weighted()),
        "base": models(method, *weighted(), base="base"),
        "not_normalized": models(method, source("a", weight=0.9), source("b", weight=0.8), normalize_weights=False),
        "not_normalized_base": models(
            method, source("a", weight=0.9), source("b", weight=0.8), base="base", normalize_weights=False
        ),
        "two": models(method, source("a", weight=1), source("b", weight=3)),
        "one": models(method, source("a", weight=1)),
        "negative": models(
            method, source("a", weight=1), source("b", weight=-0.4), source("c", weight=0.8), base="base"
        ),
        "eps": models(method, *weighted(), eps=0.01),
        "eps_base": models(method, *weighted(), base="base", eps=0.01),
        "near_parallel": models(method, source("base", weight=1), source("near", weight=2)),
        "gradient": models(method, source("a", weight=[0, 1]), source("b", weight=where(mlp=0.3, rest=1)), base="base"),
    }


def karcher() -> dict[str, Recipe]:
    method = "karcher"
    return {
        "three": models(method, source("a"), source("b"), source("c")),
        "two": models(method, source("a"), source("b")),
        "one_iteration": models(method, source("base"), source("a"), source("b"), max_iter=1),
        "tight": models(method, source("a"), source("b"), source("c"), max_iter=100, tol=0.0000001),
        "loose": models(method, source("a"), source("b"), source("c"), tol=0.1),
        "near_parallel": models(method, source("base"), source("near")),
        "one": models(method, source("a")),
        "slices": slices(
            method, cut(source("a", (0, 1)), source("b", (1, 2))), cut(source("c", (0, 2)), source("b", (0, 2)))
        ),
        "base_model": models(method, source("a"), source("b"), base="base"),
    }


def breadcrumbs() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        recipes |= {
            f"{method}/half": models(method, *weighted(density=0.5, gamma=0.05), base="base"),
            f"{method}/defaults": models(method, *weighted(), base="base"),
            f"{method}/default_gamma": models(method, *weighted(density=0.9), base="base"),
            f"{method}/no_gamma": models(method, *weighted(density=0.3, gamma=0), base="base"),
            f"{method}/beyond": models(method, *weighted(density=0.9, gamma=0.2), base="base"),
            f"{method}/normalize_lambda": models(
                method,
                source("a", weight=1, density=0.6, gamma=0.1),
                source("b", weight=-0.7, density=0.4, gamma=[0, 0.3]),
                base="base",
                normalize=True,
                lambda_=0.7,
            ),
            f"{method}/rescale": models(method, *weighted(density=0.4, gamma=0.1), base="base", rescale=True),
            f"{method}/few": models(method, *weighted(density=0.001, gamma=0.001), base="base"),
            f"{method}/density_zero": models(
                method, source("a", weight=1, density=0), source("b", weight=1, density=0.5), base="base"
            ),
        }
    return recipes


def della() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for method in ("della", "della_linear"):
        sure = {"density": CERTAIN, "epsilon": 0}
        pair = (source("a", weight=1, **sure), source("b", weight=-0.7, **sure))
        recipes |= {
            f"{method}/certain": models(method, *weighted(**sure), base="base"),
            f"{method}/negative": models(method, *pair, base="base"),
            f"{method}/normalize": models(method, *weighted(**sure), base="base", normalize=True),
            f"{method}/not_normalized": models(method, *pair, base="base", normalize=False, lambda_=1.3),
            f"{method}/no_rescale": models(method, *weighted(**sure), base="base", rescale=False),
            f"{method}/density_one": models(method, *weighted(density=1, epsilon=0), base="base"),
            f"{method}/density_one_default_epsilon": models(method, *weighted(density=1), base="base"),
        }
    return recipes


def sce() -> dict[str, Recipe]:
    method = "sce"
    three = (source("a"), source("b"), source("c"))
    return {
        "defaults": models(method, *three, base="base"),
        "half": models(method, *three, base="base", select_topk=0.5),
        "tenth": models(method, *three, base="base", select_topk=0.1),
        "none": models(method, *three, base="base", select_topk=0),
        "few": models(method, *three, base="base", select_topk=0.001),
        "two": models(method, source("a"), source("c"), base="base", select_topk=0.7),
        "one": models(method, source("a"), base="base", select_topk=0.5),
        "gradient": models(method, *three, base="base", select_topk=where(mlp=[0.2, 0.9], rest=0.5)),
        "int8_mask": models(method, *three, base="base", select_topk=0.5, int8_mask=True),
    }


def model_stock() -> dict[str, Recipe]:
    method = "model_stock"
    three = (source("a"), source("b"), source("c"))
    return {
        "three": models(method, *three, base="base"),
        "two": models(method, source("a"), source("b"), base="base"),
        "base_listed": models(method, source("base"), *three, base="base"),
        "filter_wise": models(method, *three, base="base", filter_wise=True),
        "filter_wise_two": models(method, source("a"), source("c"), base="base", filter_wise=True),
        "opposed": models(method, source("base"), source("c"), source("near"), base="a"),
        "slices": slices(
            method,
            cut(source("base", (0, 2)), source("a", (0, 2)), source("b", (0, 2))),
            cut(source("base", (1, 2)), source("b", (1, 2)), source("c", (0, 1))),
            base="base",
        ),
        "one": models(method, source("a"), base="base"),
    }


def nearswap() -> dict[str, Recipe]:
    method = "nearswap"
    return {
        "t": models(method, source("base"), source("a"), base="base", t=0.1),
        "small": models(method, source("a"), base="base", t=0.0001),
        "zero": models(method, source("a"), base="base", t=0),
        "large": models(method, source("a"), base="base", t=2),
        "gradient": models(method, source("base"), source("a"), base="base", t=where(mlp=[0.01, 0.5], rest=0.2)),
        "grid": models(method, source("base_bf16"), source("a_bf16"), base="base_bf16", t=0.01),
    }


def arcee_fusion() -> dict[str, Recipe]:
    method = "arcee_fusion"
    return {
        "a": models(method, source("base"), source("a"), base="base"),
        "b_not_listed": models(method, source("b"), base="base"),
        "near": models(method, source("near"), base="base"),
        "other_base": models(method, source("base"), source("c"), base="c"),
        "grid": models(method, source("base_bf16"), source("a_bf16"), base="base_bf16"),
    }


def ram() -> dict[str, Recipe]:
    three = (source("a"), source("b"), source("c"))
    grid = (source("a_bf16"), source("b_bf16"), source("c_bf16"))
    recipes: dict[str, Recipe] = {}
    for method in ("ram", "ramplus_tl"):
        recipes |= {
            f"{method}/defaults": models(method, *three, base="base"),
            f"{method}/epsilon": models(method, *three, base="base", epsilon=0.4),
            f"{method}/large_epsilon": models(method, *three, base="base", epsilon=0.9),
            f"{method}/two": models(method, source("a"), source("c"), base="base", epsilon=0.5),
            f"{method}/one": models(method, source("a"), base="base", epsilon=0.5),
            f"{method}/grid": models(method, *grid, base="base_bf16"),
            f"{method}/epsilon_gradient": models(method, *three, base="base", epsilon=where(mlp=[0.2, 0.8], rest=0.5)),
        }
    return recipes | {
        "ramplus_tl/r": models("ramplus_tl", *three, base="base", epsilon=0.5, r=0.5),
        "ramplus_tl/alpha": models("ramplus_tl", *three, base="base", epsilon=0.5, r=0.5, alpha=0.6),
        "ramplus_tl/alpha_large": models("ramplus_tl", *three, base="base", epsilon=0.8, r=0.7, alpha=3),
    }


def wide() -> dict[str, Recipe]:
    """One recipe per method on tensors of several blocks."""
    pair = (source("a", weight=0.6), source("b", weight=0.9))
    three = (source("a"), source("b"), source("c"))
    sure = {"density": CERTAIN, "epsilon": 0}
    return {
        "linear": models("linear", *weighted()),
        "slerp": models("slerp", source("base"), source("a"), base="base", t=0.3),
        "task_arithmetic": models("task_arithmetic", *weighted(), base="base", lambda_=0.8),
        "ties": models("ties", *weighted(density=0.37), base="base"),
        "dare_linear": models("dare_linear", *weighted(density=1), base="base"),
        "dare_ties": models("dare_ties", *weighted(density=1), base="base"),
        "passthrough": models("passthrough", source("a", scale=0.3)),
        "nuslerp": models("nuslerp", *pair, base="base", nuslerp_flatten=False),
        "multislerp": models("multislerp", *weighted(), base="base"),
        "karcher": models("karcher", *three),
        "breadcrumbs": models("breadcrumbs", *weighted(density=0.5, gamma=0.05), base="base"),
        "breadcrumbs_ties": models("breadcrumbs_ties", *weighted(density=0.5, gamma=0.05), base="base"),
        "della": models("della", *weighted(**sure), base="base"),
        "della_linear": models("della_linear", *weighted(**sure), base="base"),
        "sce": models("sce", *three, base="base", select_topk=0.3),
        "model_stock": models("model_stock", *three, base="base"),
        "nearswap": models("nearswap", source("a"), base="base", t=0.1),
        "arcee_fusion": models("arcee_fusion", source("a"), base="base"),
        "ram": models("ram", *three, base="base", epsilon=0.5),
        "ramplus_tl": models("ramplus_tl", *three, base="base", epsilon=0.5),
    }


def odd() -> dict[str, Recipe]:
    three = (source("a"), source("b"), source("c"))
    pair = (source("a", weight=0.6), source("b", weight=0.9))
    band = {"density": 0.37, "gamma": 0.11}
    rows = {"nuslerp_flatten": False, "base": "base"}
    return {
        "ties/odd": models("ties", *weighted(density=0.37), base="base"),
        "breadcrumbs/odd": models("breadcrumbs", *weighted(**band), base="base"),
        "breadcrumbs_ties/odd": models("breadcrumbs_ties", *weighted(**band), base="base"),
        "breadcrumbs/odd_beyond": models("breadcrumbs", *weighted(density=0.93, gamma=0.11), base="base"),
        "sce/odd": models("sce", *three, base="base", select_topk=0.37),
        "arcee_fusion/odd": models("arcee_fusion", source("a"), base="base"),
        "arcee_fusion/odd_near": models("arcee_fusion", source("near"), base="base"),
        "nuslerp/odd": models("nuslerp", *pair, **rows),
        "nuslerp/odd_row_wise": models("nuslerp", *pair, nuslerp_row_wise=True, **rows),
        "model_stock/odd_filter_wise": models("model_stock", *three, base="base", filter_wise=True),
        "ramplus_tl/odd": models("ramplus_tl", *three, base="base", epsilon=0.5),
    }


def more_recipes() -> dict[str, Recipe]:
    named: dict[str, Recipe] = {}
    for family in (nuslerp, multislerp, karcher, sce, model_stock, nearswap, arcee_fusion):
        named |= {f"{family.__name__}/{name}": recipe for name, recipe in family().items()}
    return named | breadcrumbs() | della() | ram()


def more_cases() -> list[Case]:
    cases = [
        Case(
            name=name,
            recipe=recipe,
            group="more",
            crashes="requires at least 3 inputs" if name == "model_stock/one" else "",
            refused=name == "model_stock/one",
        )
        for name, recipe in more_recipes().items()
    ]
    cases += [
        Case(name=name, recipe=recipe, group="odd", differs=DIFFERS.get(name, "")) for name, recipe in odd().items()
    ]
    return cases + [Case(name=f"{name}/wide", recipe=recipe, group="wide") for name, recipe in wide().items()]
