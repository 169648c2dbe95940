"""Any text at all: an answer, never an exception, within bounded time and memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymerge.errors import Problem
from raymerge.recipe.document import MAX_BYTES, MAX_DEPTH, MAX_NODES
from raymerge.recipe.load import parse_recipe
from raymerge.recipe.nouns import Recipe
from raymerge.recipe.report import MAX_PROBLEMS

CONFIGS = [path.read_text() for path in sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yml"))]


def check(text: str) -> None:
    parsed = parse_recipe(text)
    assert parsed.recipe is None or isinstance(parsed.recipe, Recipe)
    assert parsed.recipe is not None or parsed.problems
    assert len(parsed.problems) <= MAX_PROBLEMS + 1
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 1
    for problem in (*parsed.problems, *parsed.warnings):
        assert isinstance(problem, Problem)
        assert problem.message
        assert len(str(problem)) < 2000
        assert problem.line is None or 1 <= problem.line <= lines + 1
    assert [each.line or 0 for each in parsed.problems] == sorted(each.line or 0 for each in parsed.problems)


@given(st.text(max_size=200))
def test_any_text(text):
    check(text)


PIECES = (
    "merge_method: |models:|slices:|modules:|sources:|  |    |- |model: |a/b|parameters: |weight: |t: |filter: |value: "
    "|layer_range: |[0, 4]|[|]|{|}|, |: |\n|\n  |&a |*a|<<: |.nan|1e-5|0.5|true|~|!!set |'|\"|# |---\n|tokenizer: "
    "|lora: |tokens: |kind: zero|dtype: |float16|base_model: |? |+|@|s3://|\t|\0|\ud800|%YAML|path: |\u2028|-1|9e99"
)
pieces = st.sampled_from(PIECES.split("|"))


@settings(max_examples=300)
@given(st.lists(pieces, max_size=60).map("".join))
def test_pieces_of_recipes_in_any_order(text):
    check(text)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(CONFIGS), st.data())
def test_recipes_with_a_few_characters_changed(text, data):
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.text(max_size=4) | pieces) + text[end:]
    check(text)


KEYS = """
models slices modules sources model parameters weight layer_range filter value path base_model tokenizer tokens source
kind lora revision dtype keep_dtype name x
"""
tree = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS.split()),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(("merge_method", "models", "slices", "modules", "parameters", "tokenizer")), tree)
)
def test_any_value_under_any_key(value):
    check(yaml.safe_dump(value))


def billion_laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * width) + "]" for i in range(1, levels)]
    return "\n".join(lines)


N = MAX_BYTES - 10
HOSTILE = {
    "a YAML bomb": billion_laughs(9, 9),
    "a bomb of mappings": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}, z: *a{i - 1}}}\n" for i in range(1, 14)),
    "a bomb of merge keys": "a: &a {"
    + ", ".join(f"k{i}: 1" for i in range(2000))
    + "}\nb: {<<: ["
    + ", ".join(["*a"] * 50)
    + "]}",
    "an alias of itself": "a: &a [*a]",
    "an alias chain": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500)),
    "brackets": "[" * N,
    "braces": "{a: " * (N // 4),
    "dashes": "- " * (N // 2),
    "question marks": "? " * (N // 2),
    "colons": ":" * N,
    "many keys": "".join(f"key{i}: 1\n" for i in range(MAX_NODES // 2 - 10)),
    "many duplicates": "a: 1\n" * (MAX_NODES // 2 - 10),
    "many bad models": "models: [" + ",".join(["{modl: a/b}"] * 10_000) + "]",
    "many good models": "models: [" + ",".join(["{model: a/b, parameters: {weight: [0, 1]}}"] * 5_000) + "]",
    "a gradient without end": "parameters: {t: [" + ",".join(["1"] * (MAX_NODES - 100)) + "]}",
    "too many values": "parameters: {t: [" + ",".join(["1"] * (MAX_NODES + 10)) + "]}",
    "a long key over many": "? " + "k" * 900_000 + "\n: [" + ",".join("x" * 40_000) + "]",
    "a long number": "parameters: {weight: " + "1" * 1_000_000 + "}",
    "a long sexagesimal": "parameters: {weight: 1" + ":59" * 300_000 + "}",
    "a long path": "base_model: /a" + "+a" * 500_000,
    "a long word": "dtype: " + "x" * 1_000_000,
    "one long key many times": "x: &a {? " + "k" * 900_000 + " : 1}\nmodels: [" + ",".join(["*a"] * 90) + "]",
    "too long": "#" * (MAX_BYTES + 1),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_texts_are_refused_in_bounded_time(case):
    start = time.process_time()
    check(HOSTILE[case])
    seconds = time.process_time() - start
    assert parse_recipe(HOSTILE[case][: 1 << 22]).problems
    assert seconds < 10  # each takes at most about 2 s here


def test_limits_leave_room_for_the_largest_honest_recipes():
    """126 slices of one layer of three models, each with its own conditional gradient."""
    source = (
        "      - {model: org/model-%d, layer_range: [%d, %d], "
        "parameters: {weight: [{filter: attn, value: [0, 1]}, {value: 0.5}]}}\n"
    )
    text = "merge_method: linear\nslices:\n" + "".join(
        "  - sources:\n" + "".join(source % (model, layer, layer + 1) for model in range(3)) for layer in range(126)
    )
    parsed = parse_recipe(text)
    assert parsed.problems == ()
    assert len(parsed.recipe.modules[0].slices) == 126
    assert len(parsed.recipe.lines) < MAX_NODES / 4


def test_depth_is_limited_through_aliases_too():
    def nested(depth: int) -> str:
        return "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, depth))

    assert "nested more than" in str(parse_recipe(nested(MAX_DEPTH + 3)).problems)
    assert "nested more than" not in str(parse_recipe(nested(MAX_DEPTH - 2)).problems)
