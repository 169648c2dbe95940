"""What is wrong with vocabularies and rules is found at plan time, with the file and the remedy, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vocabularies import words, write_model

import raymerge

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Merge models `a` and `b`, made of words unless they are there, and return what it says against that."""

    def run(tokenizer: Any = None, **settings: Any) -> str:
        for name, tokens in (("a", ["<unk>", "x", "y"]), ("b", ["<unk>", "y", "z"])):
            if not (tmp_path / name).exists():
                write_model(tmp_path / name, words(tokens), rows=4, seed=1)
        models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
        recipe = {"merge_method": "linear", "models": models, "tokenizer": tokenizer or {"source": "union"}, **settings}
        with pytest.raises(raymerge.RaymergeError) as caught:
            raymerge.merge(recipe, tmp_path / "out", executor="inline")
        assert caught.value.exit_code == 2
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return run


def test_ids_past_the_rows(refused: Refused, tmp_path: Path) -> None:
    write_model(tmp_path / "a", words(["<unk>", "x", "y"], {"<pad>": 3, "<more>": 4}), rows=3, seed=1)
    said = refused()
    for part in (
        f"{tmp_path}/a/tokenizer.json",
        "2 tokens",
        "3 rows of model.embed_tokens.weight",
        "'<pad>' (3)",
        "resize",
    ):
        assert part in said


def test_tokens_that_are_there_twice(refused: Refused, tmp_path: Path) -> None:
    write_model(tmp_path / "a", words(["<unk>", "x", "y"], {"x": 3}), rows=4, seed=1)
    path = write_model(tmp_path / "b", words(["<unk>", "y"], {"<a>": 1}), rows=4, seed=1) / "tokenizer.json"
    said = refused()
    assert "'x' twice, as 1 and 3" in said
    assert "gives the id 1 to 'y' and to '<a>'" in said
    path.write_text(path.read_text().replace('"<unk>": 0', '"y": 0'))
    assert "names 'y' twice" in refused()
    pairs = [["<unk>", 0.0], ["y", -1.0], ["y", -2.0]]
    path.write_text(json.dumps({"model": {"type": "Unigram", "vocab": pairs}, "added_tokens": []}))
    assert "'y' twice, as 1 and 2" in refused()


def test_a_config_that_contradicts_the_tokenizer(refused: Refused, tmp_path: Path) -> None:
    settings = {"added_tokens_decoder": {"1": {"content": "<pad>"}}}
    write_model(tmp_path / "a", words(["<unk>", "x"]), rows=4, seed=1, tokenizer_config=settings)
    assert "gives the id 1 to 'x' and to '<pad>'" in refused()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"model": {"vocab": {"x": "1"}}}',
        '{"model": {"vocab": {"x": -1}}}',
        '{"model": {"vocab": [1]}}',
        '{"model": {"vocab": {}}, "added_tokens": [3]}',
        '{"model": {"vocab": {}}, "added_tokens": [{"content": "x", "id": true}]}',
    ],
)
def test_damaged_files(text: str, refused: Refused, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "b", words(["x"]), rows=4, seed=1)
    (folder / "tokenizer.json").write_text(text)
    assert f"{folder}/tokenizer.json" in refused()


def test_vocabularies_that_cannot_be_read(refused: Refused, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "b", None, rows=4, seed=1)
    assert f"{folder}: has no tokenizer" in refused()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0b")
    said = refused()
    assert f"{folder}/tokenizer.model" in said
    assert "save_pretrained" in said


def test_a_union_needs_a_tokenizer_that_can_grow(refused: Refused, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a", None, rows=4, seed=1)
    (folder / "vocab.json").write_text('{"x": 0}')
    assert "save_pretrained" in refused()


def test_no_embedding(refused: Refused, tmp_path: Path) -> None:
    from checkpoints import read_tensors, write_weights

    folder = write_model(tmp_path / "b", words(["<unk>", "q"]), rows=4, seed=1, head=False)
    arrays = read_tensors(folder)
    arrays["model.lookup.weight"] = arrays.pop("model.embed_tokens.weight")
    write_weights(folder, arrays, "F32")
    assert "known as an embedding" in refused()


@pytest.mark.parametrize(
    ("source", "rules", "parts"),
    [
        ("nobody/here", {}, ["tokenizer_source", "nobody/here", "no model of this recipe"]),
        ("base", {"zz": {"source": {"kind": "zero"}}}, ["tokenizer.tokens.zz", "no token of the output"]),
        ("base", {"<unk": {"source": {"kind": "zero"}}}, ["did you mean <unk>?"]),
        ("union", {"x": {"source": "B"}}, ["tokenizer.tokens.x", "has no token 'x'"]),
        ("union", {"x": {"source": "org/other"}}, ["org/other", "no model of this recipe"]),
        ("union", {"x": {"source": {"kind": "model_token", "model": "B", "token": "w"}}}, ["has no token 'w'"]),
        ("union", {"x": {"source": {"kind": "model_token", "model": "B", "token_id": 4}}}, ["token_id 4", "4 rows"]),
        (
            "union",
            {"x": {"source": {"kind": "model_token", "model": "B", "token_id": -1}}},
            ["token_id: found the number -1"],
        ),
    ],
)
def test_rules_that_name_what_is_not_there(
    source: str, rules: Any, parts: list[str], refused: Refused, tmp_path: Path
) -> None:
    text = json.dumps({"source": source, "tokens": rules}).replace('"B"', json.dumps(str(tmp_path / "b")))
    said = refused(json.loads(text), base_model=str(tmp_path / "a"))
    assert all(part in said for part in parts), said


def test_all_problems_are_told_at_once(refused: Refused, tmp_path: Path) -> None:
    write_model(tmp_path / "a", words(["<unk>", "x", "y"], {"x": 3}), rows=4, seed=1)
    write_model(tmp_path / "b", None, rows=4, seed=1)
    said = refused(parameters={"wieght": 1})
    assert "twice" in said
    assert "has no tokenizer" in said
    assert "wieght" in said


def test_a_new_token_is_told(tmp_path: Path) -> None:
    """In a union a rule may add a token; a misspelt one would be added too, so it is said."""
    for name, tokens in (("a", ["<unk>", "x"]), ("b", ["<unk>", "y"])):
        write_model(tmp_path / name, words(tokens), rows=2, seed=1)
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    tokenizer = {"tokens": {"<new>": {"source": {"kind": "zero"}}}}
    planned = raymerge.plan({"merge_method": "linear", "models": models, "tokenizer": tokenizer}, executor="inline")
    assert planned.vocabulary.token_count == 4
    assert any("<new>" in str(each) and "is added" in str(each) for each in planned.warnings)
