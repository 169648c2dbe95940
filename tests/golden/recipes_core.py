"""Golden recipes of linear, slerp, task_arithmetic, ties, dare_linear, dare_ties and passthrough."""

from __future__ import annotations

from typing import Any

from golden.cases import Case, Recipe, cut, models, slices, source, where

BF16_STEP = 2.0**-7  # the peer computes in bfloat16 there: a few of its steps
THREE = (("a", 0.5), ("b", 0.3), ("c", 0.2))


def weighted(**extra: Any) -> list[Recipe]:
    return [source(model, weight=weight, **extra) for model, weight in THREE]


def linear() -> dict[str, Recipe]:
    attention = where(self_attn=[0.1, 0.9], mlp=0.4, rest=1.0)
    return {
        "weights": models("linear", *weighted()),
        "not_normalized": models("linear", source("a", weight=1.0), source("b", weight=-0.4), normalize=False),
        "weights_nearly_cancel": models("linear", source("a", weight=1.0), source("b", weight=-0.99)),
        "one_model": models("linear", source("a", weight=0.25)),
        "one_model_not_normalized": models("linear", source("a", weight=0.25), normalize=False),
        "base_listed": models("linear", source("base", weight=0.2), *weighted(), base="base"),
        "base_not_listed": models("linear", source("a", weight=0.7), source("b"), base="base", weight=0.5),
        "gradient": models("linear", source("a", weight=[0, 0.5, 1]), source("b", weight=[1, 0.25])),
        "gradient_longer_than_stack": models(
            "linear", source("a", weight=[0, 1, 0, 1, 0, 1, 0.5]), source("b", weight=1)
        ),
        "gradient_of_one": models("linear", source("a", weight=[0.4]), source("b", weight=0.9)),
        "filters": models("linear", source("a", weight=attention), source("b", weight=0.5)),
        "filter_star": models("linear", source("a", weight=[{"filter": "*", "value": 0.3}]), source("b", weight=0.5)),
        "filter_order": models(
            "linear", source("a", weight=where(proj=0.2, self_attn=0.9, rest=0.4)), source("b", weight=0.5)
        ),
        "filter_falls_to_top": models("linear", source("a", weight=where(mlp=2.0)), source("b"), weight=0.5),
        "shared_filter": models("linear", *weighted(), normalize=where(mlp=False, rest=True)),
        "normalize_list": models("linear", source("a", weight=1), source("b", weight=2), normalize=[True, False]),
        "levels": slices(
            "linear",
            cut(source("a", (0, 2), weight=0.9), source("b", (0, 2)), weight=0.4),
            cut(source("a", (2, 4)), source("c", (2, 4), weight=where(q_proj=0.1))),
            weight=0.7,
        ),
        "slice_gradients": slices(
            "linear",
            cut(source("a", (0, 3), weight=[0, 1]), source("b", (1, 4), weight=[1, 0])),
            cut(source("c", (3, 4), weight=[0, 0.3]), source("a", (0, 1), weight=1.0)),
        ),
        "float32_from_bf16": models("linear", source("a_bf16", weight=0.6), source("b_bf16", weight=0.3)),
        "out_dtype_bf16": models("linear", *weighted(), out_dtype="bfloat16"),
        "out_dtype_fp16": models("linear", *weighted(), out_dtype="float16"),
        "mixed_stored_types": models("linear", source("a", weight=0.6), source("b_bf16", weight=0.3)),
        "dtype_bf16": models("linear", source("a_bf16", weight=0.6), source("b_bf16", weight=0.4), dtype="bfloat16"),
        "dtype_absent": models("linear", source("a_bf16", weight=0.6), source("b_bf16", weight=0.4), dtype=None),
        "dtype_absent_f32": models("linear", source("a", weight=0.6), source("b", weight=0.4), dtype=None),
        "empty_list": models("linear", source("a", weight=[]), source("b", weight=0.9), weight=0.3),
        "number_as_text": models("linear", source("a", weight="1e-1"), source("b", weight=0.9)),
        "weights_cancel": models("linear", source("a", weight=1), source("b", weight=-1)),
        "slices_base_not_listed": slices(
            "linear", cut(source("a", (0, 4), weight=1), source("b", (0, 4), weight=2)), base="base", weight=5
        ),
        "out_dtype_alone": models("linear", *weighted(), dtype=None, out_dtype="bfloat16"),
        "dtype_float64": models("linear", *weighted(), dtype="float64"),
        "dtype_float16": models("linear", source("a_bf16", weight=0.6), source("b_bf16", weight=0.4), dtype="float16"),
        "same_model_twice": models("linear", source("a", weight=1), source("a", weight=3), source("b", weight=1)),
        "same_model_two_layers": slices(
            "linear",
            cut(source("a", (0, 2), weight=1), source("a", (2, 4), weight=3)),
            cut(source("b", (2, 4), weight=1)),
        ),
        "module_default": {
            "merge_method": "linear",
            "modules": {"default": {"models": weighted(), "parameters": {"normalize": False}}},
            "dtype": "float32",
        },
    }


def slerp() -> dict[str, Recipe]:
    pair = (source("base"), source("a"))
    classic = where(self_attn=[0, 0.5, 0.3, 0.7, 1], mlp=[1, 0.5, 0.7, 0.3, 0], rest=0.5)
    return {
        "t": models("slerp", *pair, base="base", t=0.3),
        "t_zero": models("slerp", *pair, base="base", t=0),
        "t_one": models("slerp", *pair, base="base", t=1),
        "t_beyond_one": models("slerp", *pair, base="base", t=1.25),
        "base_second": models("slerp", source("a"), source("b"), base="b", t=0.3),
        "base_not_listed": models("slerp", source("a"), base="b", t=0.3),
        "near_parallel": models("slerp", source("base"), source("near"), base="base", t=0.6),
        "same_model": models("slerp", source("base"), source("near"), base="near", t=[0.1, 0.9]),
        "classic": slices("slerp", cut(source("base", (0, 4)), source("b", (0, 4))), base="base", t=classic),
        "two_slices": slices(
            "slerp",
            cut(source("base", (0, 3)), source("a", (1, 4)), t=[0.2, 0.8]),
            cut(source("base", (2, 4)), source("b", (2, 4)), t=where(mlp=[0, 1], rest=0.4)),
            base="base",
        ),
        "t_text_list": models("slerp", *pair, base="base", t=["0.1", "0.9"]),
        "t_exponent_text": models("slerp", *pair, base="base", t="2e-1"),
        "base_per_slice": slices(
            "slerp",
            cut(source("a", (0, 2)), source("b", (0, 2)), base="a"),
            cut(source("a", (2, 4)), source("b", (2, 4)), base="b"),
            t=0.2,
        ),
        "float32_from_bf16": models("slerp", source("base_bf16"), source("a"), base="base_bf16", t=0.4),
        "out_dtype_bf16": models("slerp", *pair, base="base", t=0.3, out_dtype="bfloat16"),
        "dtype_bf16": models("slerp", source("a_bf16"), source("b_bf16"), base="a_bf16", t=0.3, dtype="bfloat16"),
    }


def task_arithmetic() -> dict[str, Recipe]:
    method = "task_arithmetic"
    return {
        "weights": models(method, *weighted(), base="base"),
        "lambda": models(method, *weighted(), base="base", lambda_=0.6),
        "lambda_gradient": models(method, *weighted(), base="base", lambda_=where(mlp=[0.5, 1.5], rest=1.0)),
        "normalize": models(method, source("a", weight=1.5), source("b", weight=2), base="base", normalize=True),
        "normalize_nearly_cancel": models(
            method, source("a", weight=1.0), source("b", weight=-0.99), base="base", normalize=True
        ),
        "normalize_cancel": models(
            method, source("a", weight=1.0), source("b", weight=-1.0), base="base", normalize=True
        ),
        "negative": models(method, source("a", weight=1.0), source("b", weight=-0.8), base="base"),
        "base_listed": models(method, source("base"), *weighted(), base="base"),
        "base_listed_with_weight": models(method, source("base", weight=5), *weighted(), base="base", normalize=True),
        "base_listed_last": models(method, *weighted(), source("base", weight=1), base="base"),
        "gradient": models(
            method, source("a", weight=[0, 1]), source("b", weight=where(mlp=[1, 0, 1], rest=0.2)), base="base"
        ),
        "slices": slices(
            method,
            cut(source("base", (0, 2)), source("a", (0, 2), weight=0.5)),
            cut(source("base", (1, 4)), source("b", (1, 4), weight=[0.2, 0.9])),
            base="base",
        ),
        "base_per_slice": slices(
            method,
            cut(source("base", (0, 2)), source("a", (0, 2)), base="base", weight=0.5),
            cut(source("c", (2, 4)), source("b", (2, 4)), base="c", weight=0.25),
        ),
        "float32_from_bf16": models(
            method,
            source("a_bf16", weight=0.7),
            source("b_bf16", weight=0.6),
            source("c_bf16", weight=-0.3),
            base="base_bf16",
        ),
        "dtype_bf16": models(
            method, source("a_bf16", weight=0.7), source("b_bf16", weight=0.6), base="base_bf16", dtype="bfloat16"
        ),
        "out_dtype_bf16": models(method, *weighted(), base="base", out_dtype="bfloat16"),
        "int8_mask": models(method, *weighted(), base="base", int8_mask=True),
        "slices_base_not_listed": slices(
            method, cut(source("a", (0, 4), weight=1), source("b", (0, 4), weight=0.5)), base="base"
        ),
    }


def ties() -> dict[str, Recipe]:
    method = "ties"
    return {
        "half": models(method, *weighted(density=0.5), base="base"),
        "default_density": models(method, *weighted(), base="base"),
        "tenth": models(method, *weighted(density=0.1), base="base"),
        "densities": models(
            method,
            source("a", weight=1, density=0.7),
            source("b", weight=0.5, density=0.33),
            source("c", weight=0.3, density=[1, 0.7, 0.1]),
            base="base",
        ),
        "at_least_one": models(method, *weighted(density=0.00001), base="base"),
        "density_zero": models(
            method, source("a", weight=1, density=0), source("b", weight=1, density=0.5), base="base"
        ),
        "density_above_one": models(method, source("a", weight=1, density=1.5), source("b", weight=1), base="base"),
        "not_normalized": models(method, *weighted(density=0.5), base="base", normalize=False),
        "lambda": models(method, *weighted(density=0.5), base="base", lambda_=0.7),
        "rescale": models(method, *weighted(density=0.4), base="base", rescale=True),
        "rescale_not_normalized": models(
            method, *weighted(density=0.4), base="base", rescale=True, normalize=False, lambda_=1.2
        ),
        "int8_mask": models(method, *weighted(density=0.5), base="base", int8_mask=True),
        "negative_weight": models(
            method, source("a", weight=1, density=0.6), source("b", weight=-0.7, density=0.6), base="base"
        ),
        "opposed": models(
            method,
            source("a", weight=1, density=0.8),
            source("b", weight=-1, density=0.8),
            source("c", weight=0.001, density=0.8),
            base="base",
        ),
        "one_model": models(method, source("a", weight=0.6, density=0.5), base="base"),
        "base_listed": models(method, source("base"), *weighted(density=0.5), base="base"),
        "filters": models(
            method,
            source("a", weight=where(mlp=0.9, rest=0.3), density=where(self_attn=[0.2, 0.9], rest=0.5)),
            source("b", weight=[0, 1, 0.5], density=0.4),
            base="base",
            normalize=where(down_proj=False, rest=True),
        ),
        "slices": slices(
            method,
            cut(source("base", (0, 2)), source("a", (0, 2), weight=0.5), source("b", (1, 3), weight=0.9), density=0.4),
            cut(source("base", (1, 4)), source("b", (1, 4), weight=[0.2, 0.9]), source("c", (0, 3), weight=1)),
            base="base",
            density=0.6,
        ),
        "float32_from_bf16": models(
            method,
            source("a_bf16", weight=0.7),
            source("b_bf16", weight=0.6),
            source("c_bf16", weight=0.5),
            base="base_bf16",
        ),
        "tied_magnitudes": models(
            method,
            source("a_bf16", weight=0.7, density=0.5),
            source("b_bf16", weight=0.6, density=0.5),
            source("c_bf16", weight=0.5, density=0.3),
            base="base_bf16",
        ),
        "weight_zero": models(
            method, source("a", weight=0, density=0.5), source("b", weight=1, density=0.5), base="base"
        ),
        "out_dtype_bf16": models(method, *weighted(density=0.5), base="base", out_dtype="bfloat16"),
    }


def dare() -> dict[str, Recipe]:
    # density 1 keeps every entry, so nothing is random
    recipes: dict[str, Recipe] = {}
    for method in ("dare_linear", "dare_ties"):
        recipes |= {
            f"{method}/weights": models(method, *weighted(density=1), base="base"),
            f"{method}/default_density": models(method, *weighted(), base="base"),
            f"{method}/no_rescale": models(method, *weighted(density=1), base="base", rescale=False),
            f"{method}/normalize": models(
                method,
                source("a", weight=1.5, density=1),
                source("b", weight=2, density=1),
                base="base",
                normalize=True,
            ),
            f"{method}/lambda": models(method, *weighted(density=1), base="base", lambda_=0.4),
            f"{method}/negative": models(
                method, source("a", weight=1, density=1), source("b", weight=-0.9, density=1), base="base"
            ),
            f"{method}/gradient": models(
                method,
                source("a", weight=[0, 1], density=1),
                source("b", weight=where(mlp=[1, 0, 1], rest=0.2)),
                base="base",
            ),
            f"{method}/base_listed_int8_mask": models(
                method, source("base"), *weighted(density=1), base="base", int8_mask=True
            ),
            f"{method}/density_zero": models(
                method, source("a", weight=1, density=0), source("b", weight=0.5, density=1), base="base"
            ),
            f"{method}/slices": slices(
                method,
                cut(source("base", (0, 3)), source("a", (0, 3), weight=0.5), source("b", (1, 4), weight=0.9)),
                cut(source("base", (2, 4)), source("c", (1, 3), weight=[0.2, 0.9])),
                base="base",
            ),
        }
    return recipes


def passthrough() -> dict[str, Recipe]:
    method = "passthrough"
    depth_up = where(o_proj=0.0, down_proj=0.0, rest=1.0)
    return {
        "whole": models(method, source("a")),
        "frankenmerge": slices(method, cut(source("a", (0, 3))), cut(source("b", (1, 4)))),
        "repeated_layers": slices(method, cut(source("a", (0, 3))), cut(source("a", (1, 3))), cut(source("a", (1, 4)))),
        "one_layer_out": slices(method, cut(source("a", (0, 1))), cut(source("b", (2, 4)))),
        "scale": models(method, source("a", scale=0.5)),
        "scale_filters": slices(
            method, cut(source("a", (0, 2))), cut(source("a", (1, 2), scale=depth_up)), cut(source("a", (2, 4)))
        ),
        "scale_gradient": slices(
            method, cut(source("a", (0, 4), scale=[1, 0.5])), cut(source("b", (3, 4), scale=[3, 2]))
        ),
        "scale_top": slices(method, cut(source("a", (0, 2))), cut(source("b", (2, 4), scale=0.1)), scale=2.0),
        "to_bf16": slices(method, cut(source("a", (0, 2))), cut(source("b", (2, 4))), dtype="bfloat16"),
        "stored_types": slices(method, cut(source("a_bf16", (0, 2))), cut(source("b", (2, 4))), dtype=None),
        "bf16_bytes": slices(method, cut(source("a_bf16", (0, 4))), cut(source("b_bf16", (2, 4))), dtype=None),
        "out_dtype_fp16": models(method, source("a"), out_dtype="float16"),
    }


def _named(method: str, recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    return {f"{method}/{name}": recipe for name, recipe in recipes.items()}


# where the peer's output is not what the recipe means, and why
DIFFERS = {
    "linear/weights_cancel": "the weights sum to 0: infinite values",
    "ties/float32_from_bf16": "votes that cancel exactly: its float32 sum is a rounding error, whose sign it elects",
    "ties/tied_magnitudes": "magnitudes tie at the threshold: it keeps other ones than those of lowest index",
}
CRASHES = {
    "linear/same_model_twice": "Duplicate merge inputs",
    "linear/same_model_two_layers": "Duplicate merge inputs",
    "task_arithmetic/slices_base_not_listed": "Base input is not present",
}
REFUSED = {"linear/weights_cancel", "task_arithmetic/slices_base_not_listed"}


def core_cases() -> list[Case]:
    recipes = (
        _named("linear", linear())
        | _named("slerp", slerp())
        | _named("task_arithmetic", task_arithmetic())
        | _named("ties", ties())
        | dare()
        | _named("passthrough", passthrough())
    )
    return [
        Case(
            name=name,
            recipe=recipe,
            differs=DIFFERS.get(name, ""),
            crashes=CRASHES.get(name, ""),
            refused=name in REFUSED,
        )
        for name, recipe in recipes.items()
    ]
