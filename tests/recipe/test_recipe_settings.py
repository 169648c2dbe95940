"""What settings say: gradients against exact arithmetic, conditions, precedence."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.recipe.nouns import Condition, Setting
from raymerge.recipe.settings import evaluate, filters, lookup, matching

NAME = "model.layers.3.self_attn.q_proj.weight"
numbers = st.floats(-100, 100, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-9) | st.integers(
    -9, 9
)
layers = st.integers(2, 200).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count)))


def value_of(value: object, t: float = 0.0, name: str = NAME) -> object:
    return evaluate(Setting(value=value), tensor_name=name, t=t)


@pytest.mark.parametrize("value", [0.5, 3, True, False, "l1", 0])
def test_a_scalar_holds_everywhere(value):
    for t in (0.0, 0.3, 1.0):
        found = value_of(value, t)
        assert found == value
        assert type(found) is type(value)


@given(st.lists(numbers, min_size=1, max_size=40), layers)
def test_a_gradient_is_linear_between_its_entries(entries, layer):
    index, count = layer
    place = Fraction(index, count - 1) * (len(entries) - 1)
    left = floor(place)
    right = min(left + 1, len(entries) - 1)
    exact = Fraction(entries[left]) + (place - left) * (Fraction(entries[right]) - Fraction(entries[left]))
    found = value_of(tuple(entries), index / (count - 1))
    assert isinstance(found, float)
    assert abs(found - exact) <= 1e-7 * max(1, abs(exact))
    assert min(entries) - 1e-6 <= found <= max(entries) + 1e-6


@given(st.integers(2, 400))
def test_a_list_with_one_entry_per_layer_gives_each_layer_its_own(count):
    names = tuple(f"entry{index}" for index in range(count))
    values = tuple(float(index) / 7 for index in range(count))
    for index in range(count):
        assert value_of(names, index / (count - 1)) == names[index]
        assert value_of(values, index / (count - 1)) == values[index]


@given(st.lists(st.booleans(), min_size=1, max_size=20), layers)
def test_truth_values_are_taken_not_mixed(entries, layer):
    index, count = layer
    expected = entries[floor(Fraction(index, count - 1) * (len(entries) - 1))]
    assert value_of(tuple(entries), index / (count - 1)) is expected


def test_the_gradient_of_the_common_slerp_recipe():
    t = [value_of((0, 0.5, 0.3, 0.7, 1), layer / 31) for layer in (0, 8, 16, 24, 31)]
    assert t == pytest.approx([0.0, 0.4935483871, 0.3258064516, 0.7290322581, 1.0])


def test_an_empty_list_is_not_set():
    assert value_of(()) is None
    assert value_of((Condition(filter=None, value=()),)) is None


def test_the_first_condition_that_matches_decides():
    conditions = (
        Condition(filter="self_attn", value=(0, 1)),
        Condition(filter="q_proj", value=0.25),
        Condition(filter="*", value=0.5),
        Condition(filter=None, value=0.75),
    )
    assert value_of(conditions, 0.5) == 0.5
    assert value_of(conditions, 0.1) == pytest.approx(0.1)
    assert value_of(conditions, 0.1, "decoder.q_proj") == 0.25
    assert value_of(conditions, 0.1, "lm_head.weight") == 0.5
    assert value_of(conditions[:2], 0.1, "lm_head.weight") is None
    assert value_of(conditions[3:], 0.1, "lm_head.weight") == 0.75


def test_a_star_inside_a_filter_is_no_wildcard():
    assert value_of((Condition(filter="*attn*", value=1.0),)) is None


def test_lookup_takes_the_first_level_that_yields_a_value():
    unset = {"weight": Setting(value=(Condition(filter="mlp", value=9.0),)), "other": Setting(value=1.0)}
    empty = {"weight": Setting(value=())}
    source, top = {"weight": Setting(value=0.25)}, {"weight": Setting(value=0.5)}
    ask = lambda *levels: lookup(levels, "weight", tensor_name=NAME, t=0.0)  # noqa: E731
    assert ask(source, top) == 0.25
    assert ask(unset, empty, {}, top) == 0.5
    assert ask(unset, empty) is None
    assert ask() is None
    assert lookup((unset, top), "weight", tensor_name="mlp.up", t=0.0) == 9.0


def test_false_and_zero_are_values():
    levels = ({"a": Setting(value=False), "b": Setting(value=0)}, {"a": Setting(value=True), "b": Setting(value=1)})
    assert lookup(levels, "a", tensor_name=NAME, t=0.0) is False
    assert lookup(levels, "b", tensor_name=NAME, t=0.0) == 0


words = st.sampled_from(["attn", "mlp", "q", "layers.3", "", "*"])
conditions = st.lists(
    st.builds(Condition, filter=words | st.none(), value=numbers | st.lists(numbers, max_size=3).map(tuple)), max_size=4
)
tensor_names = st.sampled_from([NAME, "model.layers.31.mlp.up_proj.weight", "lm_head.weight", "q", ""])


@given(conditions, conditions, st.lists(tensor_names, min_size=2, max_size=2), st.sampled_from([0.0, 0.3, 1.0]))
def test_names_that_match_the_same_filters_have_the_same_values(first, second, names, t):
    levels = ({"w": Setting(value=tuple(first))}, {"w": Setting(value=tuple(second))})
    asked = filters(*levels)
    if matching(asked, names[0]) == matching(asked, names[1]):
        one, other = (lookup(levels, "w", tensor_name=name, t=t) for name in names)
        assert one == other


def test_filters_are_in_order_and_once():
    setting = Setting(value=tuple(Condition(filter=each, value=1) for each in ("mlp", "*", "attn", "mlp", None)))
    assert filters({"a": setting, "b": Setting(value=(1, 2))}, {"a": setting}) == ("mlp", "attn")
