"""What the base decides where it is an input like the others; heads that some models tie; what cannot be planned."""

from typing import Any

import pytest
from planning import checkpoint, jobs_of, llama_names, plan_of

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.dtypes import DType
from raymerge.errors import PlanError
from raymerge.planning.nouns import Plan

LINEAR = """
merge_method: linear
base_model: base
models:
- {model: a, parameters: {weight: 1}}
- {model: base, parameters: {weight: 2}}
"""
STACKED = """
merge_method: passthrough
slices:
- sources: [{model: FIRST, layer_range: [0, 2]}]
- sources: [{model: LAST, layer_range: [0, 2]}]
"""


def llama(name: str, *, tie: bool | None = None, head: bool = True, **more: Any) -> Checkpoint:
    config: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 8}
    if tie is not None:
        config["tie_word_embeddings"] = tie
    return checkpoint(name, llama_names(2, head=head), config=config, **more)


def refused(recipe: str, *models: Checkpoint) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(recipe, *models)
    return str(caught.value)


def test_a_base_among_the_inputs_decides_types_and_buffers_wherever_it_is_listed() -> None:
    shapes = {**llama_names(2), "model.buffer": (3,)}
    integers = {"model.buffer": DType.I64}
    a = checkpoint("a", shapes, dtypes=integers)
    base = checkpoint("base", shapes, dtype=DType.F32, dtypes=integers)
    jobs = jobs_of(plan_of(LINEAR, a, base))
    assert jobs["model.norm.weight"].output.dtype is DType.F32
    assert jobs["model.buffer"].inputs[0].ref is base.tensors["model.buffer"]
    merged = jobs["model.norm.weight"].inputs
    assert [each.ref.file.identity for each in merged] == ["a", "base"]
    assert [each.parameters["weight"] for each in merged] == [1, 2]


def test_on_missing_and_on_mismatch_take_the_declared_base() -> None:
    a = checkpoint("a", {**llama_names(2, vocab=40), "model.extra.weight": (3,)})
    b = checkpoint("b", llama_names(2, vocab=48))
    base = checkpoint("base", {**llama_names(2), "model.extra.weight": (3,)})
    recipe = LINEAR + "- {model: b, parameters: {weight: 1}}\non_missing: base\non_mismatch: base\n"
    jobs = jobs_of(plan_of(recipe, a, base, b))
    for name in ("model.extra.weight", "lm_head.weight"):
        assert jobs[name].inputs[0].ref is base.tensors[name]


def tie_of(plan: Plan) -> object:
    return plan.output_config.get("tie_word_embeddings")


def test_a_head_from_an_untied_last_slice_is_not_overlooked() -> None:
    recipe = STACKED.replace("FIRST", "tied").replace("LAST", "own")
    plan = plan_of(recipe, llama("tied", tie=True, head=False), llama("own", tie=False))
    assert "lm_head.weight" in jobs_of(plan)
    assert tie_of(plan) is False


def test_stored_copies_of_tied_heads_stay_tied() -> None:
    plan = plan_of(LINEAR, llama("a", tie=True), llama("base", tie=True))
    assert tie_of(plan) is True


def test_a_nested_text_config_is_untied_too() -> None:
    text = {"text_config": {"num_hidden_layers": 2, "tie_word_embeddings": True}}
    a = checkpoint("a", llama_names(2, head=False), config=text)
    recipe = STACKED.replace("FIRST", "a").replace("LAST", "own")
    plan = plan_of(recipe, a, llama("own", tie=False))
    assert tie_of(plan) is False
    assert plan.output_config["text_config"]["tie_word_embeddings"] is False


def test_a_head_that_is_left_out_leaves_the_donor_tied() -> None:
    other = checkpoint("base", llama_names(2, head=False, vocab=48), config={"num_hidden_layers": 2})
    recipe = LINEAR.replace("base_model: base\n", "on_missing: skip\non_mismatch: base\n") + (
        "- {model: own, parameters: {weight: 1}}\n"
    )
    plan = plan_of(recipe, llama("a", tie=True, head=False), other, llama("own", tie=False))
    assert "lm_head.weight" not in jobs_of(plan)
    assert tie_of(plan) is True


def test_a_model_that_says_it_has_its_own_head_lends_no_embedding() -> None:
    told = refused(LINEAR, llama("a"), llama("base", tie=False, head=False))
    assert "lm_head.weight" in told
    assert "base lacks it" in told


def test_integers_against_numbers_are_refused_unless_the_base_may_decide() -> None:
    coded = {name: DType.I8 for name in llama_names(2) if "proj" in name}
    models = llama("a", dtypes=coded), llama("base")
    told = refused(LINEAR, *models)
    assert "I8" in told
    assert "and 11 more tensors" in told
    name = "model.layers.0.mlp.up_proj.weight"
    plan = plan_of(LINEAR + "on_mismatch: base\n", *models)
    assert jobs_of(plan)[name].inputs[0].ref is models[1].tensors[name]


@pytest.mark.parametrize("value", ["[0, 1]", "[{filter: mlp, value: [0, 1]}, {value: 0}]"])
def test_values_over_layers_need_layers(value: str) -> None:
    recipe = f"merge_method: slerp\nbase_model: a\nparameters: {{t: {value}}}\nmodels: [{{model: a}}, {{model: b}}]"
    a, b = (checkpoint(name, llama_names(2), config={"count_of_layers": 2}) for name in "ab")
    told = refused(recipe, a, b)
    assert "t: varies over layers, but a has no numbered layers" in told
    assert len(plan_of(recipe.replace(value, "[0.5, 0.5]"), a, b).shards) == 1


def test_equal_settings_on_other_lines_agree_on_what_stands_outside_the_layers() -> None:
    source = "- sources:\n  - model: a\n    layer_range: [0, 2]\n    parameters: {scale: 0.5}\n"
    a = checkpoint("a", {**llama_names(2), "model.strange.weight": (2,)})
    plan = plan_of(f"merge_method: passthrough\nslices:\n{source}{source}", a)
    assert "model.strange.weight" in jobs_of(plan)


def test_numbers_in_names_that_count_nothing() -> None:
    names = {**llama_names(2), f"model.blocks.{'9' * 5000}.weight": (1,), "model.layers.1.line\nbreak.weight": (2,)}
    a = checkpoint("a", names, config={"num_hidden_layers": 2})
    recipe = "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]"
    assert "model.layers.1.line\nbreak.weight" not in jobs_of(plan_of(recipe, a))
    assert len(jobs_of(plan_of("merge_method: passthrough\nmodels: [{model: a}]", a))) == len(names)


def test_patterns_of_keep_dtype_that_match_nothing_are_told() -> None:
    recipe = "merge_method: passthrough\ndtype: float16\nkeep_dtype: ['*.nrom.*', norm]\nmodels: [{model: a}]"
    warnings = [str(warning) for warning in plan_of(recipe, llama("a")).warnings]
    assert [text for text in warnings if "exempts nothing" in text] != []
    assert "*.nrom.*" in "".join(warnings)
    assert not any("'norm'" in text for text in warnings)


def test_a_nested_config_that_ties_by_default_is_untied_in_words() -> None:
    """Without the key, Gemma 3 and others tie; what decides is the text model's section."""
    text = {"text_config": {"num_hidden_layers": 2, "vocab_size": 32}, "vision_config": {"hidden_size": 4}}
    base = checkpoint("base", llama_names(2, head=False), config=text)
    plan = plan_of(LINEAR, llama("a", tie=False), base)
    assert plan.output_config["text_config"]["tie_word_embeddings"] is False
    assert plan.output_config["tie_word_embeddings"] is False
    assert "tie_word_embeddings" not in plan.output_config["vision_config"]


@pytest.mark.parametrize("ties", [(True, True), (None, True), (True, None), (None, None)])
@pytest.mark.parametrize("base", ["a", "b"])
def test_stored_heads_of_two_models_stay_apart_from_the_embedding(ties: tuple[bool | None, ...], base: str) -> None:
    """The embedding comes from the first slice, the head from the last: no tie may replace one by the other."""
    models = [llama(name, tie=tie) for name, tie in zip("ab", ties, strict=True)]
    recipe = STACKED.replace("FIRST", "a").replace("LAST", "b") + f"base_model: {base}\n"
    assert tie_of(plan_of(recipe, *models)) is False


def test_stored_copies_with_settings_of_their_own_are_untied() -> None:
    recipe = LINEAR.replace("weight: 2", "weight: [{filter: lm_head, value: 1}, {value: 2}]")
    assert tie_of(plan_of(recipe, llama("a", tie=True), llama("base", tie=True))) is False
    assert tie_of(plan_of(LINEAR, llama("a", tie=True), llama("base", tie=True))) is True
