"""Every kind of rule, source and padding, on vocabularies drawn at random, against the oracle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vocabularies import rows_of, token_ids, words, write_model
from vocabulary_oracle import UNION, Embedded, Rule, aligned, vocabulary

import raymerge

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_models(folder: Path, seed: int, *, heads: tuple[bool, ...] = (True, True, True)) -> list[Path]:
    """Models of some of 60 words each, in orders of their own, with 0 to 5 rows of padding."""
    draw = random.Random(seed)
    pool = [f"w{number}" for number in range(60)]
    made = []
    for name, head in zip("abc", heads, strict=True):
        own = ["<unk>", *draw.sample(pool, draw.randint(15, 45))]
        rows = len(own) + draw.randint(0, 5)
        made.append(write_model(folder / name, words(own), rows=rows, seed=seed + ord(name), head=head))
    return made


def embedded(folder: Path, tensor: str) -> Embedded:
    tokens = token_ids(json.loads((folder / "tokenizer.json").read_text()))
    return Embedded(tokens=tokens, rows=rows_of(folder, tensor))


def random_rules(draw: random.Random, models: list[Path], members: list[Embedded], known: dict[str, int]) -> Any:
    """The same rules for the oracle and for a recipe."""
    rules: dict[str, Rule] = {}
    forms: dict[str, Any] = {}
    for token in draw.sample(sorted(known), 8):
        at, force = draw.randrange(len(models)), draw.random() < 0.5
        kind = draw.choice(["zero", "model", "token", "token_id"])
        other = draw.choice(sorted(members[at].tokens))
        if kind == "zero":
            row, source = None, {"kind": "zero"}
        elif kind == "model" and token in members[at].tokens:
            row, source = (at, token), str(models[at])
        elif kind == "token":
            row, source = (at, other), {"kind": "model_token", "model": str(models[at]), "token": other}
        else:
            number = draw.randrange(len(members[at].rows))
            row, source = (at, number), {"kind": "model_token", "model": {"path": str(models[at])}, "token_id": number}
        rules[token] = Rule(row=row, force=force)
        forms[token] = {"source": source, "force": force}
    return rules, forms


@pytest.mark.parametrize("seed", range(12))
def test_random_vocabularies_and_rules(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    models = write_models(tmp_path, 10 * seed)
    base = draw.choice([None, 0, 2])
    source = draw.choice([UNION, "base", 1])
    multiple = draw.choice([None, 16])
    place: str | int = (base or 0) if source == "base" else source
    members = [embedded(model, EMBEDDING) for model in models]
    rules, forms = random_rules(draw, models, members, vocabulary(members, base, place))
    tokenizer = {"source": str(models[1]) if source == 1 else source, "tokens": forms}
    recipe = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [{"model": str(model), "parameters": {"weight": 1 + at}} for at, model in enumerate(models)],
        "tokenizer": tokenizer | ({"pad_to_multiple_of": multiple} if multiple else {}),
        **({"base_model": str(models[base])} if base is not None else {}),
    }
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    for tensor in (EMBEDDING, HEAD):
        parts = aligned([embedded(model, tensor) for model in models], base, place, rules=rules, multiple=multiple)
        exact = sum((1 + at) * part for at, part in enumerate(parts)) / 6
        found = rows_of(tmp_path / "out", tensor)
        assert found.shape == exact.shape
        assert np.abs(found - exact).max() <= 1e-6 * np.abs(exact).max()


def test_a_tied_head_lends_its_embedding(tmp_path: Path) -> None:
    """The head of a model that ties it is filled, and gives rows to others, as its embedding does."""
    models = write_models(tmp_path, 7, heads=(True, False, True))
    entries = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    recipe = {"merge_method": "linear", "dtype": "float32", "models": entries, "tokenizer_source": "union"}
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    for tensor, names in ((EMBEDDING, [EMBEDDING] * 3), (HEAD, [HEAD, EMBEDDING, HEAD])):
        members = [embedded(model, name) for model, name in zip(models, names, strict=True)]
        exact = sum(aligned(members, None, UNION)) / 3
        assert np.abs(rows_of(tmp_path / "out", tensor) - exact).max() <= 1e-6 * np.abs(exact).max()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_tied_models_stay_tied(tmp_path: Path) -> None:
    models = write_models(tmp_path, 8, heads=(False, False, False))
    entries = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    recipe = {"merge_method": "linear", "dtype": "float32", "models": entries, "tokenizer_source": "union"}
    planned = raymerge.plan(recipe, executor="inline")
    shapes = {job.output.name: job.output.shape for shard in planned.shards for job in shard.jobs}
    assert HEAD not in shapes
    assert shapes[EMBEDDING][0] == planned.output_config["vocab_size"] == planned.vocabulary.row_count


def test_merging_a_model_with_itself_returns_it_padding_too(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", words(["<unk>", "a", "b"]), rows=8, seed=1)
    tuned = write_model(tmp_path / "t", words(["<unk>", "b"]), rows=2, seed=2)
    entries = [{"model": str(model), "parameters": {"weight": 1}}, {"model": str(tuned), "parameters": {"weight": 0}}]
    recipe = {"merge_method": "linear", "base_model": str(model), "models": entries, "tokenizer_source": "base"}
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    assert np.array_equal(rows_of(tmp_path / "out", EMBEDDING), rows_of(model, EMBEDDING))


def test_rows_that_need_no_change_are_copied_as_they_lie(tmp_path: Path) -> None:
    """Vocabularies that are equal but for tokens that the output leaves out leave the donor's tensors alone."""
    model = write_model(tmp_path / "m", words(["<unk>", "a", "b"]), rows=4, seed=1)
    longer = write_model(tmp_path / "l", words(["<unk>", "a", "b", "c"]), rows=4, seed=2)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(model)}], "tokenizer_source": "base"}
    jobs = [job for shard in raymerge.plan(recipe, executor="inline").shards for job in shard.jobs]
    assert {job.method for job in jobs} == {"copy"}
    entries = [{"model": str(each), "parameters": {"weight": 1}} for each in (model, longer)]
    planned = raymerge.plan({**recipe, "merge_method": "linear", "models": entries}, executor="inline")
    refs = {job.output.name: job.refs for shard in planned.shards for job in shard.jobs}
    assert [len(ref.steps) for ref in refs[EMBEDDING]] == [0, 1]
    assert [(each.model, each.matched, each.dropped, each.padding) for each in planned.vocabulary.rows] == [
        (str(model), 3, 0, 1),
        (str(longer), 3, 1, 0),
    ]
    assert dict(planned.vocabulary.rows[1].filled) == {"the only model that has it": 1}


def test_layers_of_models_with_different_vocabularies(tmp_path: Path) -> None:
    """Slices take the embedding from the first and the head from the last model, both in the output's vocabulary."""
    models = write_models(tmp_path, 9)
    slices = [{"sources": [{"model": str(model), "layer_range": [0, 1]}]} for model in models[:2]]
    recipe = {"merge_method": "passthrough", "dtype": "float32", "slices": slices, "tokenizer_source": "union"}
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    for tensor, at in ((EMBEDDING, 0), (HEAD, 1)):
        members = [embedded(model, tensor) for model in models[:2]]
        assert np.allclose(rows_of(tmp_path / "out", tensor), aligned(members, None, UNION)[at], rtol=1e-7, atol=0)
