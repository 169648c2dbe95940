"""The output's tokenizer, and the ids in its configs, mean what its rows mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from vocabularies import added_token, bpe, byte_alphabet, token_ids, tokenizer_json, words, write_model

import raymerge

CHAT = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEXTS = [
    "the rain in seattle\n\tholds on, and  on: 1234 times",
    "<|im_start|>user\nhère’s ünïcode – 漢字 🎉<|im_end|>\n<s>hello</s>",
    "".join(chr(number) for number in range(1, 700)),
]


def merge(folder: Path, models: list[str], **settings: Any) -> Path:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(folder / name), "parameters": {"weight": 1}} for name in models],
        **{key: str(folder / value) if key == "base_model" else value for key, value in settings.items()},
    }
    raymerge.merge(recipe, folder / "out", executor="inline")
    return folder / "out"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_text_goes_through_a_union_and_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_model(tmp_path / "a", bpe(3000, seed=1), rows=3000, seed=1)
    write_model(tmp_path / "b", bpe(4000, seed=2, special=CHAT), rows=4000, seed=2)
    out = merge(tmp_path, ["a", "b"], tokenizer_source="union")
    made, first, second = (
        Tokenizer.from_file(str(path / "tokenizer.json")) for path in (out, tmp_path / "a", tmp_path / "b")
    )
    for text in TEXTS:
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == text
    assert made.encode("<|im_start|>").tokens == ["<|im_start|>"]
    used = set(made.encode(TEXTS[0] * 5 + "testing another nation's other relations and notes").tokens)
    assert used & (set(second.get_vocab()) - set(first.get_vocab()))
    assert all(first.token_to_id(token) == place for token, place in first.get_vocab().items())
    assert all(made.token_to_id(token) == place for token, place in first.get_vocab().items())


def test_transformers_reads_the_union(tmp_path: Path) -> None:
    import transformers

    for name, special in (("a", CHAT[:2]), ("b", CHAT)):
        tokenizer = bpe(1500 + len(special), seed=ord(name), special=special)
        listed = {
            str(each["id"]): {key: each[key] for key in each if key != "id"} for each in tokenizer["added_tokens"]
        }
        settings = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": listed}
        write_model(tmp_path / name, tokenizer, rows=1600, seed=1, tokenizer_config=settings)
    out = merge(tmp_path, ["a", "b"], tokenizer_source="union", base_model="a")
    made = transformers.AutoTokenizer.from_pretrained(str(out))
    assert len(made) == made.vocab_size == len(token_ids(read_json(out / "tokenizer.json")))
    text = "<|im_start|>some notes<|im_end|>"
    assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text
    model = transformers.AutoModelForCausalLM.from_pretrained(str(out))
    ids = made(text, return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape[-1] == read_json(out / "config.json")["vocab_size"] == len(made)


def wordpiece(tokens: list[str]) -> dict[str, Any]:
    model = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {token: place for place, token in enumerate(["[UNK]", *tokens])},
    }  # fmt: skip
    return tokenizer_json(model, {"[UNK]": 0}) | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}}


def unigram(tokens: Mapping[str, float]) -> dict[str, Any]:
    model = {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [["<unk>", 0.0], *([token, score] for token, score in tokens.items())],
    }
    return tokenizer_json(model, {"<x>": len(tokens) + 1})


def test_unions_of_word_pieces_and_of_unigrams(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    cases = {
        "pieces": (
            wordpiece(["un", "##able", "able"]),
            wordpiece(["unable", "##s", "un"]),
            "unables",
            ["unable", "##s"],
        ),
        "unigrams": (
            unigram({"un": -2.0, "able": -2.5, "s": -3.0}),
            unigram({"s": -3.0, "unable": -1.0, "zz": -4.0}),
            "unables",
            ["unable", "s"],
        ),
    }
    for name, (first, second, text, tokens) in cases.items():
        folder = tmp_path / name
        write_model(folder / "a", first, rows=len(token_ids(first)), seed=1)
        write_model(folder / "b", second, rows=len(token_ids(second)), seed=2)
        made = Tokenizer.from_file(str(merge(folder, ["a", "b"], tokenizer_source="union") / "tokenizer.json"))
        assert made.encode(text).tokens == tokens
        assert made.encode("zz").tokens == (["zz"] if name == "unigrams" else ["[UNK]"])


def test_files_that_know_less_are_left_out_of_a_union(tmp_path: Path) -> None:
    write_model(tmp_path / "a", bpe(300, seed=1), rows=300, seed=1)
    write_model(tmp_path / "b", bpe(310, seed=2), rows=310, seed=2)
    for name in ("vocab.json", "merges.txt", "tokenizer.model", "special_tokens_map.json"):
        (tmp_path / "a" / name).write_text("{}")
    names = {path.name for path in merge(tmp_path, ["a", "b"], tokenizer_source="union").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert not names & {"vocab.json", "merges.txt", "tokenizer.model"}


@pytest.mark.parametrize("source", ["base", "b"])
def test_files_of_one_model_are_copied_as_they_are(source: str, tmp_path: Path) -> None:
    for name, count in (("a", 300), ("b", 310)):
        write_model(tmp_path / name, bpe(count, seed=count), rows=320, seed=1)
    chosen = source if source == "base" else str(tmp_path / source)
    out = merge(tmp_path, ["a", "b"], base_model="a", tokenizer_source=chosen)
    donor = tmp_path / ("a" if source == "base" else source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (donor / name).read_bytes()


def test_ids_follow_their_tokens_to_another_vocabulary(tmp_path: Path) -> None:
    """config.json and generation_config.json come from the base; the tokenizer, and so the ids, from another model."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "image_token_id": 3}
    generation = {"eos_token_id": [2, 3], "suppress_tokens": [1, 4], "temperature": 0.5, "bos_token_id": 1}
    base = words(["<unk>", "<s>", "</s>", "<image>", "gone"])
    write_model(
        tmp_path / "a", base, rows=8, seed=1, config={**ids, "text_config": {"vocab_size": 8, "eos_token_id": 2}},
        generation_config=generation,
    )  # fmt: skip
    other = words(["<unk>", "x", "<image>", "<s>", "y", "</s>", "<end>"])
    write_model(
        tmp_path / "b", other, rows=7, seed=2, config={"bos_token_id": 3, "eos_token_id": 6},
        generation_config={"eos_token_id": [5, 6]},
    )  # fmt: skip
    out = merge(tmp_path, ["a", "b"], base_model="a", tokenizer_source=str(tmp_path / "b"))
    config = read_json(out / "config.json")
    assert config["vocab_size"] == config["text_config"]["vocab_size"] == 7
    assert {key: config[key] for key in ids} == {
        "bos_token_id": 3,
        "eos_token_id": 6,  # the tokenizer's model says how its texts end
        "pad_token_id": None,
        "image_token_id": 2,  # the base's token, where the other vocabulary has it
    }
    assert config["text_config"]["eos_token_id"] == 5
    made = read_json(out / "generation_config.json")
    assert made == {"eos_token_id": [5, 6], "suppress_tokens": [3], "temperature": 0.5, "bos_token_id": 3}


def test_ids_stay_in_a_union(tmp_path: Path) -> None:
    write_model(tmp_path / "a", words(["<unk>", "<s>", "</s>"]), rows=5, seed=1)
    write_model(tmp_path / "b", words(["</s>", "<s>", "z"]), rows=3, seed=2)
    before = read_json(tmp_path / "a" / "config.json")
    out = merge(tmp_path, ["a", "b"], tokenizer_source="union")
    assert read_json(out / "config.json") == before | {"vocab_size": 4}
    assert (out / "generation_config.json").read_bytes() == (tmp_path / "a" / "generation_config.json").read_bytes()


def test_no_tokenizer_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    for name, count in (("a", 300), ("b", 310)):
        write_model(tmp_path / name, bpe(count, seed=count), rows=count, seed=1)
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    recipe = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    raymerge.merge(recipe, tmp_path / "out", executor="inline", copy_tokenizer=False)
    assert not list((tmp_path / "out").glob("tokenizer*"))


def test_vocabularies_of_other_files_are_matched_too(tmp_path: Path) -> None:
    """A model with vocab.json or vocab.txt takes part; tokens that only tokenizer_config.json adds count."""
    write_model(tmp_path / "a", words(["<unk>", "x", "y"]), rows=4, seed=1)
    write_model(tmp_path / "b", None, rows=4, seed=2)
    (tmp_path / "b" / "vocab.json").write_text(json.dumps({"y": 0, "x": 1}))
    settings = {"added_tokens_decoder": {"2": {"content": "<z>", "special": True}}}
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps(settings))
    write_model(tmp_path / "c", None, rows=4, seed=3)
    (tmp_path / "c" / "vocab.txt").write_text("x\nq\n")
    out = merge(tmp_path, ["a", "b", "c"], tokenizer_source="union")
    tokenizer = read_json(out / "tokenizer.json")
    assert token_ids(tokenizer) == {"<unk>": 0, "x": 1, "y": 2, "<z>": 3, "q": 4}
    assert [each for each in tokenizer["added_tokens"] if each["content"] == "<z>"] == [added_token("<z>", 3)]


def test_bytes_and_letters_are_told_apart(tmp_path: Path) -> None:
    write_model(tmp_path / "a", bpe(300, seed=1), rows=300, seed=1)
    write_model(tmp_path / "b", words(["<unk>", *byte_alphabet()[:4]]), rows=5, seed=2)
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    planned = raymerge.plan(
        {"merge_method": "linear", "models": models, "tokenizer_source": "union"}, executor="inline"
    )
    assert any("BPE on bytes" in str(each) and "WordLevel" in str(each) for each in planned.warnings)
