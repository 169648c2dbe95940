from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.recipe.suggest import did_you_mean, suggest

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dare-ties", "dare_ties"),
        ("DARE TIES", "dare_ties"),
        ("sleep", "slerp"),
        ("Linear", "linear"),
        ("task_arithmatic", "task_arithmetic"),
        ("xyz", None),
        ("", None),
        ("t" * 100_000, None),
    ],
)
def test_the_nearest_word(word, expected):
    assert suggest(word, METHODS) == expected
    assert did_you_mean(word, METHODS) == (f"did you mean {expected}?" if expected else "")


def test_choices_need_not_be_in_normal_form():
    assert suggest("a_b_c_d", ("One", "A-B-C-D")) == "A-B-C-D"


def test_nothing_to_choose_from():
    assert suggest("ties", ()) is None


@given(st.text(max_size=80), st.lists(st.text(max_size=12)))
def test_a_suggestion_is_a_choice(word, choices):
    assert suggest(word, choices) in (*choices, None)
