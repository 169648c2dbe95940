"""How models are named: what separates a revision and an adapter, and what is part of a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.recipe.load import parse_recipe
from raymerge.recipe.nouns import ModelReference
from raymerge.recipe.reference import parse_reference


def reference(path: str, revision: str | None = None, adapter: ModelReference | None = None) -> ModelReference:
    return ModelReference(path=path, revision=revision, adapter=adapter)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", reference("org/name")),
        ("gpt2", reference("gpt2")),
        (" org/name ", reference("org/name")),
        ("org/name@main", reference("org/name", "main")),
        ("org/name@refs/pr/1", reference("org/name", "refs/pr/1")),
        ("org/name+org/lora", reference("org/name", None, reference("org/lora"))),
        ("org/name+lora", reference("org/name", None, reference("lora"))),
        ("org/name@v1+org/lora@v2", reference("org/name", "v1", reference("org/lora", "v2"))),
        ("org/name+./lo+ra@x", reference("org/name", None, reference("./lo+ra@x"))),
        ("org/name+s3://b/lo+ra", reference("org/name", None, reference("s3://b/lo+ra"))),
        ("./my+model", reference("./my+model")),
        ("/data/a@b", reference("/data/a@b")),
        ("~/models/a+b@c", reference("~/models/a+b@c")),
        ("../a+b", reference("../a+b")),
        ("merges/2024/a@b+c", reference("merges/2024/a@b+c")),
        (".", reference(".")),
        ("/data/base+org/lora", reference("/data/base", None, reference("org/lora"))),
        ("/data/a+b+/lora", reference("/data/a+b", None, reference("/lora"))),
        ("./base+./lora", reference("./base", None, reference("./lora"))),
        ("/data/a+b/c/d", reference("/data/a+b/c/d")),
        ("s3://bucket/a+b/c@d", reference("s3://bucket/a+b/c@d")),
        ("s3://bucket/base+s3://bucket/lora", reference("s3://bucket/base", None, reference("s3://bucket/lora"))),
        ("gs://bucket/base+/lora", reference("gs://bucket/base", None, reference("/lora"))),
        ("git+ssh://host/x", reference("git+ssh://host/x")),
        ("hf://org/name@rev", reference("hf://org/name", "rev")),
        ("hf://org/name@rev+org/lora@r", reference("hf://org/name", "rev", reference("org/lora", "r"))),
    ],
)
def test_texts(text, expected):
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "  ", "+lora", "org/name+", "org/name@", "@main", "a/b+c+d", "a\nb", "x" * 5000])
def test_texts_that_name_nothing(text):
    with pytest.raises(ValueError, match="expected"):
        parse_reference(text)


@given(st.text(alphabet="ab/.~+@:s3hf-_ ", max_size=30))
def test_any_text_is_read_or_refused_and_reads_the_same_when_written_out(text):
    try:
        found = parse_reference(text)
    except ValueError:
        return
    assert found.path
    assert str(found) == text.strip()


def model_of(value: str) -> tuple[object, tuple[str, ...]]:
    parsed = parse_recipe(f"merge_method: linear\nmodels:\n  - model: {value}\n")
    assert not parsed.problems, parsed.problems
    return parsed.recipe.modules[0].models[0].model, tuple(str(each) for each in parsed.warnings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{model: {path: /data/a+b/c@d}}", reference("/data/a+b/c@d")),
        ("{model: {path: org/name, revision: v1}}", reference("org/name", "v1")),
        ("{model: {path: org/name, revision: 0123456}}", reference("org/name", "0123456")),
        ("{model: org/name@v1}", reference("org/name", "v1")),
        ("{path: org/name, revision: v1}", reference("org/name", "v1")),
        ("{model: {path: a/b}, lora: {path: c/d, revision: r}}", reference("a/b", None, reference("c/d", "r"))),
        ("{model: {path: a/b, revision: null}, lora: null}", reference("a/b")),
    ],
)
def test_mappings(text, expected):
    assert model_of(text) == (expected, ())


def test_a_path_that_may_hold_an_adapter_is_pointed_out():
    _, warnings = model_of("/data/a+b/c")
    expected = "b/c is read as an adapter of /data/a; if this is one path, write {model: {path: /data/a+b/c}}"
    assert warnings == (f"line 3: models[0].model: {expected}",)
    assert model_of("org/name+b/c")[1] == ()
