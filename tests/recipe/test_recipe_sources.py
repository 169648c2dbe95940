"""Where a recipe's text comes from: files, URLs, texts and mappings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.dtypes import DType
from raymerge.errors import NotFoundError, RecipeError
from raymerge.recipe.load import load_recipe, parse_recipe, read_recipe_text
from raymerge.recipe.nouns import ModelReference, OnMissing

TEXT = "merge_method: linear\nmodels:\n  - model: a/b\n    parameters: {weight: 1.0}\n"


def no_url(url: str) -> str:
    raise AssertionError(f"asked for {url}")


def read(config) -> str:
    return read_recipe_text(config, read_url=no_url)


def refusal(config) -> str:
    with pytest.raises(RecipeError) as caught:
        read(config)
    return str(caught.value)


def test_a_path_as_text_or_path(tmp_path, monkeypatch):
    (tmp_path / "r.yml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for config in ("r.yml", tmp_path / "r.yml", str(tmp_path / "r.yml"), "./r.yml", "~/r.yml", Path("~/r.yml")):
        assert read(config) == TEXT


def test_yaml_text():
    assert read(TEXT) == TEXT
    line = "{merge_method: linear, models: [{model: a/b}]}"
    assert read(line) == line
    assert read("merge_method: linear") == "merge_method: linear"


def test_a_url_goes_to_its_reader():
    assert read_recipe_text("s3://bucket/r.yml", read_url=lambda url: f"read: {url}") == "read: s3://bucket/r.yml"

    def missing(url: str) -> str:
        raise NotFoundError(f"{url} does not exist")

    with pytest.raises(NotFoundError, match="does not exist"):
        read_recipe_text("https://host/r.yml", read_url=missing)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "config.yml").write_text(TEXT)
    path = str(tmp_path / "config.yaml")
    assert refusal(path) == f"{path}: there is no such file; did you mean config.yml?"
    assert "nowhere cannot be listed" in refusal(tmp_path / "nowhere" / "config.yml")


def test_files_that_cannot_be_read(tmp_path):
    assert "found a folder" in refusal(tmp_path)
    (tmp_path / "latin.yml").write_bytes(b"merge_method: ties\nname: caf\xe9\n")
    assert refusal(tmp_path / "latin.yml").startswith(f"line 2: {tmp_path}/latin.yml: found byte 0xe9, expected UTF-8")
    assert "such file" in refusal("x" * 5000) or "cannot be read" in refusal("x" * 5000)
    assert "cannot be read" in refusal("a\0b")
    assert refusal(tmp_path / "latin.yml" / "r.yml").endswith("cannot be read: Not a directory")
    assert "empty name" in refusal("  ")
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read(tmp_path / "bom.yml") == TEXT


def test_a_mapping_reads_back_as_itself():
    half = {"weight": (0, 0.5, 1e-5), "normalize": True}
    mapping = {
        "merge_method": "linear",
        "models": [
            {"model": ModelReference(path="a/b", revision="v1"), "parameters": half},
            {"model": Path("c/d"), "parameters": half},
        ],
        "dtype": DType.BF16,
        "on_missing": OnMissing.SKIP,
        "chat_template": "a: {{ b }}\n  'c' \t\u00e9\n",
        "name": "1e3",
    }
    text = read(mapping)
    assert "&" not in text
    recipe = load_recipe(text)
    assert recipe.modules[0].models[0].model == ModelReference(path="a/b", revision="v1")
    assert recipe.modules[0].models[1].model == ModelReference(path="c/d")
    for source in recipe.modules[0].models:
        assert source.parameters["weight"].value == (0, 0.5, 1e-5)
        assert source.parameters["normalize"].value is True
    assert recipe.dtype is DType.BF16
    assert recipe.on_missing is OnMissing.SKIP
    assert recipe.chat_template == mapping["chat_template"]
    assert recipe.name == "1e3"


def test_mappings_that_are_no_recipe():
    assert "models[0].model: found a value of type object" in refusal({"models": [{"model": object()}]})
    loop: dict = {}
    loop["models"] = loop
    assert "nested more than" in refusal(loop)


words = st.text(alphabet="abXY019._-/:#'\"{}[]&*!|>%@` \n\te+~?é", max_size=12)
scalars = st.floats(-1e300, 1e300) | st.integers(-(10**15), 10**15) | st.booleans()
values = scalars | st.lists(st.floats(-9, 9), min_size=1, max_size=4) | st.lists(st.booleans(), min_size=1, max_size=3)
settings = values | st.lists(
    st.fixed_dictionaries({"value": values}, optional={"filter": words}), min_size=1, max_size=3
)


@given(st.dictionaries(words.filter(lambda name: name not in ("", "<<")), settings, max_size=5), words)
def test_parameters_survive_the_way_through_text(parameters, name):
    mapping = {"merge_method": "m", "models": [{"model": "a/b", "parameters": parameters}], "name": name}
    parsed = parse_recipe(read(mapping))
    assert parsed.problems == ()
    found = parsed.recipe.modules[0].models[0].parameters
    assert list(found) == list(parameters)
    assert parsed.recipe.name == name

    def plain(value):
        if not isinstance(value, tuple):
            return value
        entries = [plain(entry) if not hasattr(entry, "filter") else entry for entry in value]
        return [
            {"value": plain(entry.value), **({} if entry.filter is None else {"filter": entry.filter})}
            if hasattr(entry, "filter")
            else entry
            for entry in entries
        ]

    assert {key: plain(setting.value) for key, setting in found.items()} == parameters
