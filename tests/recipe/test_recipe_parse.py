"""Texts to recipes: what the dialect means, and that everything wrong is found at once, with its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from raymerge.dtypes import DType, recipe_dtype_names
from raymerge.errors import RecipeError
from raymerge.recipe.load import load_recipe, parse_recipe
from raymerge.recipe.nouns import Condition, ModelReference, OnMismatch, OnMissing, Recipe, Setting

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yml"))
HEAD = "merge_method: ties\nmodels:\n  - model: a/b\n"


def found(text: str) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.subject) for problem in parse_recipe(text).problems]


def content(recipe: Recipe | None) -> Recipe:
    """The recipe without its text and lines."""
    assert recipe is not None
    return replace(recipe, text="", lines={})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_common_recipes_have_no_problem(path):
    parsed = parse_recipe(path.read_text())
    assert parsed.problems == ()
    assert parsed.warnings == ()
    assert load_recipe(path.read_text()) == parsed.recipe
    assert parsed.recipe.text == path.read_text()


def test_there_are_five_common_recipes():
    assert [path.stem for path in CONFIGS] == ["dare_ties", "linear", "passthrough", "slerp", "ties"]


def test_the_common_slerp_recipe_in_full():
    recipe = load_recipe(CONFIGS[3].read_text())
    assert recipe.merge_method == "slerp"
    assert recipe.dtype is DType.BF16
    assert recipe.base_model == ModelReference(path="AIDC-ai-business/Marcoroni-7B-v3")
    (part,) = recipe.modules[0].slices
    assert [source.layer_range for source in part.sources] == [(0, 32), (0, 32)]
    assert recipe.parameters["t"].value == (
        Condition(filter="self_attn", value=(0, 0.5, 0.3, 0.7, 1)),
        Condition(filter="mlp", value=(1, 0.5, 0.7, 0.3, 0)),
        Condition(filter=None, value=0.5),
    )
    assert recipe.lines["parameters.t[1].value"] == 15
    assert recipe.parameters["t"].line == 11


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_misspelt_key_is_named_and_the_recipe_saved(path):
    """Every structural key in turn: its line, a suggestion, and the recipe it was meant to be."""
    lines = path.read_text().splitlines()
    meant = content(parse_recipe(path.read_text()).recipe)
    structural = (
        "models",
        "slices",
        "sources",
        "model",
        "layer_range",
        "merge_method",
        "base_model",
        "dtype",
        "filter",
    )
    tried = 0
    for number, line in enumerate(lines, start=1):
        key = line.partition(":")[0].strip("- ")
        if key not in structural:
            continue
        misspelt = "\n".join([*lines[: number - 1], line.replace(key, f"{key}x", 1), *lines[number:]])
        parsed = parse_recipe(misspelt)
        assert [(each.line, each.remedy) for each in parsed.problems] == [(number, f"did you mean {key}?")]
        assert content(parsed.recipe) == meant
        tried += 1
    assert tried > 4


BAD = {
    "no method": ("models:\n  - model: a/b\n", [(1, "merge_method")]),
    "empty method": ("models:\n  - model: a/b\nmerge_method:\n", [(1, "merge_method")]),
    "blank method": ('models:\n  - model: a/b\nmerge_method: ""\n', [(1, "merge_method")]),
    "method is a number": ("models:\n  - model: a/b\nmerge_method: 5\n", [(3, "merge_method")]),
    "no models": ("dtype: float16\nmerge_method: ties\n", [(1, "models")]),
    "models without entries": ("merge_method: ties\nmodels:\n", [(1, "models")]),
    "empty models": ("merge_method: ties\nmodels: []\n", [(2, "models")]),
    "models is text": ("merge_method: ties\nmodels: a/b\n", [(2, "models")]),
    "misspelt models is text": ("merge_method: ties\nmodel: a/b\n", [(2, "model"), (2, "models")]),
    "models and slices": (HEAD + "slices: []\n", [(4, "slices")]),
    "slices and models": ("slices: []\n" + HEAD, [(1, "slices"), (3, "models")]),
    "entry is text": ("merge_method: ties\nmodels:\n  - a/b\n", [(3, "models[0]")]),
    "entry without model": (HEAD + "  - parameters: {weight: 1}\n", [(4, "models[1]")]),
    "entry is nothing": (HEAD + "  -\n", [(4, "models[1]")]),
    "model is a number": (HEAD + "  - model: 123\n", [(4, "models[1].model")]),
    "model is a list": (HEAD + "  - model: [a/b]\n", [(4, "models[1].model")]),
    "two adapters": (HEAD + "  - model: a/b+c+d\n", [(4, "models[1].model")]),
    "mapping without path": (HEAD + "  - model: {lora: {path: x}}\n", [(4, "models[1].model")]),
    "mapping with a bad path": (
        HEAD + "  - model:\n      model:\n        path: 7\n",
        [(6, "models[1].model.model.path")],
    ),
    "parameter outside parameters": (HEAD + "    weight: 0.5\n", [(4, "models[0].weight")]),
    "layer range of a whole model": (HEAD + "    layer_range: [0, 3]\n", [(4, "models[0].layer_range")]),
    "unknown key": (HEAD + "colour: red\n", [(4, "colour")]),
    "unknown key without value": (HEAD + "colour:\n", [(4, "colour")]),
    "dtype": (HEAD + "dtype: bfloat61\n", [(4, "dtype")]),
    "dtype is a number": (HEAD + "dtype: 16\n", [(4, "dtype")]),
    "dtype is a list": (HEAD + "dtype: [float16]\n", [(4, "dtype")]),
    "dtype and out_dtype": (HEAD + "dtype: int8\nout_dtype: fp8\n", [(4, "dtype"), (5, "out_dtype")]),
    "keep_dtype": (HEAD + "keep_dtype: [[a]]\n", [(4, "keep_dtype")]),
    "on_missing": (HEAD + "on_missing: skp\non_mismatch: skip\n", [(4, "on_missing"), (5, "on_mismatch")]),
    "duplicate key": (HEAD + "    parameters:\n      w: 1\n      w: 2\n", [(6, "models[0].parameters.w")]),
    "tag": (HEAD + "name: !!python/name:os.system x\n", [(4, "")]),
    "tag on a list": (HEAD + "keep_dtype: !!set [a]\n", [(4, "")]),
    "list as key": (HEAD + "? [a]\n: b\n", [(4, "")]),
    "base_model": (HEAD + "base_model: [a]\n", [(4, "base_model")]),
    "parameters is a list": (HEAD + "parameters:\n  - weight: 1\n", [(4, "parameters")]),
    "nothing": (HEAD + "parameters:\n  weight:\n", [(5, "parameters.weight")]),
    "NaN": (HEAD + "parameters:\n  weight: .nan\n", [(5, "parameters.weight")]),
    "NaN as text": (HEAD + "parameters:\n  weight: nan\n", [(5, "parameters.weight")]),
    "infinity": (HEAD + "parameters:\n  weight: -.inf\n", [(5, "parameters.weight")]),
    "beyond float64": (HEAD + "parameters:\n  weight: 1e999\n", [(5, "parameters.weight")]),
    "integer beyond float64": (HEAD + f"parameters:\n  weight: {'9' * 400}\n", [(5, "parameters.weight")]),
    "NaN in a gradient": (HEAD + "parameters:\n  t:\n    - 0\n    - .NaN\n", [(7, "parameters.t[1]")]),
    "gradient with a hole": (HEAD + "parameters:\n  t: [0, ~]\n", [(5, "parameters.t[1]")]),
    "gradient of unlike values": (HEAD + "parameters:\n  t: [0, a]\n", [(5, "parameters.t")]),
    "truth values among numbers": (HEAD + "parameters:\n  t: [0, true]\n", [(5, "parameters.t")]),
    "gradient of gradients": (HEAD + "parameters:\n  t: [[0]]\n", [(5, "parameters.t[0]")]),
    "condition without value": (HEAD + "parameters:\n  t:\n    - filter: x\n", [(6, "parameters.t[0]")]),
    "condition with a key too many": (
        HEAD + "parameters:\n  t:\n    - value: 1\n      layer: 3\n",
        [(7, "parameters.t[0].layer")],
    ),
    "condition beside a number": (HEAD + "parameters:\n  t: [{value: 1}, 2]\n", [(5, "parameters.t[1]")]),
    "conditions in a condition": (
        HEAD + "parameters:\n  t:\n    - value: [{value: 1}]\n",
        [(6, "parameters.t[0].value[0]")],
    ),
    "NaN in a condition": (
        HEAD + "parameters:\n  t:\n    - filter: x\n      value: [0, .nan]\n",
        [(7, "parameters.t[0].value[1]")],
    ),
    "tokenizer twice": (HEAD + "tokenizer_source: base\ntokenizer: {source: union}\n", [(4, "tokenizer_source")]),
    "tokenizer is text": (HEAD + "tokenizer: union\n", [(4, "tokenizer")]),
    "tokenizer source": (HEAD + "tokenizer_source: Union\n", [(4, "tokenizer_source")]),
    "tokenizer keys": (
        HEAD + "tokenizer:\n  sorce: union\n  pad_to_multiple_of: 0\n",
        [(5, "tokenizer.sorce"), (6, "tokenizer.pad_to_multiple_of")],
    ),
    "token without source": (HEAD + "tokenizer:\n  tokens:\n    x: {force: true}\n", [(6, "tokenizer.tokens.x")]),
    "token kind": (
        HEAD + "tokenizer:\n  tokens:\n    x:\n      source: {kind: model_tokn}\n",
        [(7, "tokenizer.tokens.x.source.kind")],
    ),
    "token of no model": (
        HEAD + "tokenizer:\n  tokens:\n    x:\n      source: {kind: model_token, token: y}\n",
        [(7, "tokenizer.tokens.x.source")],
    ),
    "token and id": (
        HEAD + "tokenizer:\n  tokens:\n    x:\n      source: {kind: model_token, model: a/b, token: y, token_id: 3}\n",
        [(7, "tokenizer.tokens.x.source")],
    ),
    "force": (
        HEAD + "tokenizer:\n  tokens:\n    x:\n      source: a/b\n      force: 1\n",
        [(8, "tokenizer.tokens.x.force")],
    ),
    "chat template": (HEAD + "chat_template: chatlm\n", [(4, "chat_template")]),
    "several stages": (HEAD + "---\n" + HEAD, [(5, "document 2")]),
    "no mapping": ("- a\n- b\n", [(1, "")]),
    "text": ("hello\n", [(1, "")]),
    "empty": ("", [(None, "")]),
    "comments alone": ("# nothing here\n---\n", [(None, "")]),
    "tab": ("models:\n\t- model: a/b\n", [(2, "")]),
    "syntax": ("a: [1, 2\nb: 3\n", [(2, "")]),
    "two colons": ("a: b\nc: d: e\n", [(2, "")]),
    "null character": ("a: b\nc: \0\n", [(2, "")]),
    "lone surrogate": ("a: \ud800\n", [(1, "")]),
    "unknown alias": ("a: *b\n", [(1, "")]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_line(case):
    text, expected = BAD[case]
    parsed = parse_recipe(text)
    assert [(problem.line, problem.subject) for problem in parsed.problems] == expected
    assert all("expected" in str(each) or each.remedy for each in parsed.problems), parsed.problems
    with pytest.raises(RecipeError) as caught:
        load_recipe(text)
    assert caught.value.problems == parsed.problems
    assert caught.value.exit_code == 2


SLICED = """\
merge_method: slerp
slices:
  - sources:
      - model: a/b
        layer_range: {range}
      - model: c/d
        layer_range: [4, 8]
"""


@pytest.mark.parametrize(
    "wrong", ["[0]", "[0, 4, 8]", "[4, 4]", "[5, 1]", "[-4, 0]", "[0, 4.0]", "[a, b]", "4", "[true, 4]", "[0, 1e9]"]
)
def test_bad_layer_ranges(wrong):
    parsed = parse_recipe(SLICED.format(range=wrong))
    assert [(each.line, each.subject) for each in parsed.problems] == [(5, "slices[0].sources[0].layer_range")]
    assert [source.layer_range for source in parsed.recipe.modules[0].slices[0].sources] == [(4, 8)]


def test_ranges_of_unlike_lengths():
    parsed = parse_recipe(SLICED.format(range="[0, 3]"))
    assert [(each.line, each.subject) for each in parsed.problems] == [(3, "slices[0].sources")]
    assert "ranges of 3, 4 layers" in parsed.problems[0].message
    assert [source.layer_range for source in parsed.recipe.modules[0].slices[0].sources] == [(0, 3), (4, 7)]


def test_a_slice_without_sources_or_ranges():
    assert found("merge_method: linear\nslices:\n  - parameters: {t: 1}\n") == [(3, "slices[0].sources")]
    assert found("merge_method: linear\nslices:\n  - sources: []\n") == [(3, "slices[0].sources")]
    text = "merge_method: linear\nslices:\n  - sources:\n      - model: a/b\n"
    assert found(text) == [(4, "slices[0].sources[0].layer_range")]


def test_all_problems_come_at_once_in_order_of_lines_and_the_rest_is_saved():
    text = """\
merge_method: dare-ties
base_modl: a/base
models:
  - model: a/one
    parameters: {weight: .nan, density: 0.5}
  - model: 7
dtype: bfloat61
on_missing: bas
"""
    parsed = parse_recipe(text)
    assert [(each.line, each.subject) for each in parsed.problems] == [
        (2, "base_modl"),
        (5, "models[0].parameters.weight"),
        (6, "models[1].model"),
        (7, "dtype"),
        (8, "on_missing"),
    ]
    recipe = parsed.recipe
    assert recipe.merge_method == "dare-ties"
    assert recipe.lines["merge_method"] == 1
    assert recipe.base_model == ModelReference(path="a/base")
    assert recipe.lines["base_model"] == 2
    assert [str(each.model) for each in recipe.modules[0].models] == ["a/one"]
    assert dict(recipe.modules[0].models[0].parameters) == {"density": Setting(value=0.5, line=5)}
    assert recipe.dtype is DType.BF16
    assert recipe.on_missing is OnMissing.BASE


def test_a_problem_says_found_expected_and_remedy():
    (problem,) = parse_recipe(HEAD + "dtype: bfloat61\n").problems
    assert str(problem) == (
        f"line 4: dtype: found 'bfloat61', expected one of {', '.join(recipe_dtype_names())}; did you mean bfloat16?"
    )
    (problem,) = parse_recipe(HEAD + "dtype: float8\n").problems
    assert problem.remedy == ""


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ('"0.5"', 0.5),
        ("'3'", 3),
        (".5", 0.5),
        ("-2", -2),
        ("+1.", 1.0),
        ("1", 1),
        ("1.0", 1.0),
        ("true", True),
        ("no", False),
        ('"true"', "true"),
        ("l1", "l1"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("[0, 1e-1, '0.5']", (0, 0.1, 0.5)),
        ("[true, false]", (True, False)),
        ("[l1, density]", ("l1", "density")),
        ("[]", ()),
        ("[3]", (3,)),
        ("{filter: attn, value: 1}", (Condition(filter="attn", value=1),)),
        ("[{filter: '*', value: [1, 0]}]", (Condition(filter="*", value=(1, 0)),)),
        ("[{filter: 31, value: []}]", (Condition(filter="31", value=()),)),
        ("[{filter: ~, value: 1e-3}]", (Condition(filter=None, value=0.001),)),
    ],
)  # fmt: skip
def test_values_of_parameters(written, value):
    recipe = load_recipe(HEAD + f"parameters:\n  x: {written}\n")
    read = recipe.parameters["x"]
    assert read == Setting(value=value, line=5)
    assert repr(read.value) == repr(value)  # 1, 1.0 and True are not the same


def test_every_level_of_parameters():
    text = """\
merge_method: linear
modules:
  text.:
    slices:
      - base_model: a/base
        parameters: {t: 3}
        sources:
          - model: a/b
            layer_range: ["0", "4"]
            parameters: {t: 4}
    parameters: {t: 2}
  vision.:
    models:
      - model: c/d@v1
parameters: {t: 1}
"""
    recipe = load_recipe(text)
    text_module, vision = recipe.modules
    (part,) = text_module.slices
    levels = (recipe, text_module, part, part.sources[0])
    assert [level.parameters["t"].value for level in levels] == [1, 2, 3, 4]
    assert [level.parameters["t"].line for level in levels] == [15, 11, 6, 10]
    assert (text_module.prefix, vision.prefix) == ("text.", "vision.")
    assert part.base_model == ModelReference(path="a/base")
    assert part.sources[0].layer_range == (0, 4)
    assert vision.models[0].model == ModelReference(path="c/d", revision="v1")
    assert [each.line for each in (text_module, part, part.sources[0], vision)] == [3, 5, 8, 12]


def test_modules_hold_models_or_slices_and_nothing_more():
    text = "merge_method: linear\nmodules:\n  text.:\n    models: [{model: a/b}]\n    base_model: a/b\n"
    assert found(text) == [(5, "modules.text..base_model")]
    assert found("merge_method: linear\nmodules:\n  text.: {}\n") == [(3, "modules.text.")]
    assert found("merge_method: linear\nmodules: {}\n") == [(2, "modules")]


def test_every_other_key():
    text = (
        HEAD
        + """\
dtype: torch.bfloat16
out_dtype: fp32
keep_dtype: [router, gate]
on_missing: skip
on_mismatch: base
tokenizer_source: model:a/b
chat_template: "{{ messages }}"
name: 12
base_model: a/b
"""
    )
    recipe = load_recipe(text)
    assert (recipe.dtype, recipe.out_dtype) == (DType.BF16, DType.F32)
    assert recipe.keep_dtype == ("router", "gate")
    assert (recipe.on_missing, recipe.on_mismatch) == (OnMissing.SKIP, OnMismatch.BASE)
    assert recipe.tokenizer_source == "a/b"
    assert recipe.chat_template == "{{ messages }}"
    assert recipe.name == "12"
    assert load_recipe(HEAD + "keep_dtype: router\n").keep_dtype == ("router",)


def test_keys_without_a_value_count_as_absent():
    nothing = "parameters:\ndtype: ~\nbase_model: null\ntokenizer_source:\nchat_template:\n    \nslices:\n"
    assert content(load_recipe(HEAD + nothing)) == content(load_recipe(HEAD))


def test_a_tokenizer_is_kept_as_it_is():
    text = (
        HEAD
        + """\
tokenizer:
  source: union
  pad_to_multiple_of: 64
  tokens:
    <|im_start|>: {source: a/b, force: true}
    1: {source: {kind: zero}}
    "true": {source: {kind: model_token, model: a/b, token_id: 3}}
    x: {source: {model: {path: /a+b}}}
"""
    )
    recipe = load_recipe(text)
    assert recipe.tokenizer == {
        "source": "union",
        "pad_to_multiple_of": 64,
        "tokens": {
            "<|im_start|>": {"source": "a/b", "force": True},
            "1": {"source": {"kind": "zero"}},
            "true": {"source": {"kind": "model_token", "model": "a/b", "token_id": 3}},
            "x": {"source": {"model": {"path": "/a+b"}}},
        },
    }
    assert recipe.tokenizer_source is None


def test_anchors_and_merge_keys():
    text = """\
merge_method: linear
models:
  - &first
    model: a/b
    parameters: &half {weight: 0.5, density: 0.5}
  - model: c/d
    parameters:
      <<: *half
      weight: 0.25
  - *first
"""
    one, two, three = load_recipe(text).modules[0].models
    assert {name: setting.value for name, setting in two.parameters.items()} == {"weight": 0.25, "density": 0.5}
    assert three.model == one.model
    assert three.line == 10


def test_of_several_merged_mappings_the_first_wins():
    entry = (
        "  - &one {model: a/b, parameters: {t: 1}}\n  - &two {model: c/d, parameters: {t: 2}}\n  - <<: [*one, *two]\n"
    )
    third = load_recipe("merge_method: linear\nmodels:\n" + entry).modules[0].models[2]
    assert (str(third.model), third.parameters["t"].value) == ("a/b", 1)
    assert found(HEAD + "    <<: 3\n") == [(4, "<<")]


def test_an_anchor_ends_with_its_document():
    assert found("name: &a x\n---\nname: *a\n") == [(3, "")]


def test_documents_that_are_empty_are_no_stages():
    assert content(load_recipe(f"---\n---\n{HEAD}...\n---\n# the end\n")).modules[0].models[0].line == 5
    assert load_recipe("\ufeff" + HEAD).merge_method == "ties"


def test_the_old_architecture_override_is_a_warning():
    parsed = parse_recipe(HEAD + "  - model: {model: {path: a/b}, override_architecture: Llama}\n")
    assert parsed.problems == ()
    assert [(each.line, each.subject) for each in parsed.warnings] == [(4, "models[1].model.override_architecture")]


def test_lines_are_those_of_the_keys():
    recipe = load_recipe(HEAD + "parameters:\n  t:\n    - filter: x\n      value:\n        - 0\n        - 1\n")
    assert recipe.lines == {
        "merge_method": 1,
        "models": 2,
        "models[0]": 3,
        "models[0].model": 3,
        "parameters": 4,
        "parameters.t": 5,
        "parameters.t[0]": 6,
        "parameters.t[0].filter": 6,
        "parameters.t[0].value": 7,
        "parameters.t[0].value[0]": 8,
        "parameters.t[0].value[1]": 9,
    }


def test_without_the_c_parser_the_same_recipe(monkeypatch):
    texts = [path.read_text() for path in CONFIGS] + [text for text, _ in BAD.values()]
    fast = [parse_recipe(text) for text in texts]
    monkeypatch.delattr(yaml, "CSafeLoader")
    for text, parsed in zip(texts, fast, strict=True):
        slow = parse_recipe(text)
        assert slow.recipe == parsed.recipe
        assert [each.subject for each in slow.problems] == [each.subject for each in parsed.problems]
