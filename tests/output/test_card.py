"""The model card: metadata that the hub takes, and no word of where files lay."""

from __future__ import annotations

import dataclasses
import re

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from outputs import two_model_plan

from raymerge.output.card import model_card, read_license
from raymerge.recipe.load import load_recipe


def with_hub(plan, *ids):
    """The plan as if its models were the hub's; None leaves one local."""
    models = tuple(
        model if hub_id is None else dataclasses.replace(
            model, reference=hub_id, hub_id=hub_id, commit="0123456789abcdef" * 2, url=f"hf://{hub_id}@0123"
        )
        for model, hub_id in zip(plan.models, ids, strict=True)
    )  # fmt: skip
    text = plan.recipe_text
    for old, new in zip(plan.models, models, strict=True):
        text = text.replace(old.reference, new.reference)
    return dataclasses.replace(plan, models=models, recipe_text=text)


@pytest.fixture
def plan(tmp_path):
    return two_model_plan(tmp_path / "private" / "place")


def metadata(card):
    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def recipe_in(card):
    return re.search(r"^(`{3,})yaml\n(.*?)^\1$", card, re.DOTALL | re.MULTILINE).group(2)


def test_hub_models_are_the_base_models(plan):
    card = model_card(with_hub(plan, "org/a", "other.org/b-2"))
    assert metadata(card) == {
        "base_model": ["org/a", "other.org/b-2"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mergekit", "merge"],
    }
    assert "[org/a](https://huggingface.co/org/a) at `0123456789ab`" in card
    for base in metadata(card)["base_model"]:
        validate_repo_id(base)


def test_local_models_are_no_base_models_and_no_path_is_shown(plan, tmp_path):
    card = model_card(plan)
    assert "base_model" not in metadata(card)
    assert "base_model_relation" not in metadata(card)
    assert "private" not in card
    assert str(tmp_path) not in card
    assert "- local: a\n- local: b" in card
    assert [source.model.path for source in load_recipe(recipe_in(card)).modules[0].models] == ["local: a", "local: b"]


def test_mixed_models_name_the_hub_ids_alone(plan):
    card = model_card(with_hub(plan, "org/a", None))
    assert metadata(card)["base_model"] == ["org/a"]
    assert "local: b" in card


def test_folders_of_one_name_are_told_apart(plan):
    twin = dataclasses.replace(plan.models[1], url="/elsewhere/a", reference="/elsewhere/a")
    card = model_card(dataclasses.replace(plan, models=(plan.models[0], twin)))
    assert "- local: a\n- local: a (2)" in card


LEAKS = """\
# from /home/secret/comment
merge_method: linear
models:
  - {{model: {a}, parameters: {{weight: 1}}}}
  - {{model: {b}, parameters: {{weight: 1}}}}
tokenizer_source: /home/secret/tokenizer
base_model: {{model: {{path: ~/secret/base}}}}
other: [s3://secret-bucket/x/last?sig=secret, "\\\\\\\\host\\\\secret\\\\share", ../secret/up, ./secret/here, "https://secret:secret@h/z"]
kept: hf://org/public
chat_template: |
  {{{{ '/not/a/path/' }}}} text
"""


def test_nothing_private_in_the_recipe_reaches_the_card(plan):
    text = LEAKS.format(a=plan.models[0].reference, b="org/b")
    card = model_card(dataclasses.replace(with_hub(plan, None, "org/b"), recipe_text=text))
    assert "secret" not in card
    for shown in ("local: a", "org/b", "local: tokenizer", "local: base", "local: last", "local: z", "/not/a/path/"):
        assert shown in card
    assert "hf://org/public" in card


def test_a_recipe_with_backticks_stays_in_its_block(plan):
    text = plan.recipe_text + "chat_template: |\n  ```\n  # not a heading\n"
    card = model_card(dataclasses.replace(plan, recipe_text=text))
    assert "# not a heading" in recipe_in(card)


def test_methods_come_with_their_papers(plan):
    card = model_card(dataclasses.replace(plan, methods=("ties", "linear")))
    assert "[arXiv 2306.01708](https://arxiv.org/abs/2306.01708)" in card
    assert "- `linear`: average the models" in card


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        ([{"license": "mit"}, {"license": "mit"}], {"license": "mit"}),
        ([{"license": "mit"}, {"license": "apache-2.0"}], {}),
        ([{"license": "mit"}, {}], {}),
        ([{}, {}], {}),
        (
            [{"license": "other", "license_name": "n", "license_link": "l"}] * 2,
            {"license": "other", "license_name": "n", "license_link": "l"},
        ),
        ([{"license": "other", "license_name": "n"}, {"license": "other", "license_name": "m"}], {}),
    ],
)
def test_a_license_is_named_where_all_inputs_agree(plan, licenses, expected):
    found = metadata(model_card(plan, licenses))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("no metadata", {}),
        ("---\nlicense: mit\ntags: [a]\n---\n# Title", {"license": "mit"}),
        ("---\r\nlicense: other\r\nlicense_name: x\r\n---\r\n", {"license": "other", "license_name": "x"}),
        ("---\nlicense: [mit]\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("---\n{broken: [\n---\n", {}),
        ("---\nlicense: !!python/object/apply:os.system [x]\n---\n", {}),
        ("---\n---\n", {}),
    ],
)
def test_licenses_are_read_from_cards_that_can_be_read(plan, text, expected):
    model = plan.models[0]
    if text is not None:
        with open(f"{model.url}/README.md", "w", newline="") as file:
            file.write(text)
        model = dataclasses.replace(model, side_files=(*model.side_files, "README.md"))
    assert read_license(model) == expected
