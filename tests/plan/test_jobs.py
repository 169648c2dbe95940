"""What becomes of every tensor of every input, and in which order it is written."""

import pytest
from planning import checkpoint, jobs_of, llama_names, plan_of

from raymerge.dtypes import DType
from raymerge.errors import PlanError
from raymerge.planning.nouns import Plan

LINEAR = """
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: 0.5}}
"""
TIES = """
merge_method: ties
base_model: base
models:
  - {model: base}
  - {model: a, parameters: {weight: 0.5, density: 0.5}}
  - {model: b, parameters: {weight: 0.5, density: 0.5}}
"""
SLICES = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
"""


def fates(plan: Plan, model: str) -> dict[str, tuple[str, str]]:
    return {name: (line.fate, line.rule) for line in plan.ledger if line.model == model for name in line.tensors}


def messages(error: PlanError) -> str:
    return "\n".join(str(problem) for problem in error.problems)


def test_the_base_stands_apart_and_is_no_slot() -> None:
    names = llama_names(2)
    job = jobs_of(plan_of(TIES, checkpoint("base", names), checkpoint("a", names), checkpoint("b", names)))[
        "lm_head.weight"
    ]
    assert job.base is not None
    assert [each.ref.file.identity for each in (job.inputs)] == ["a", "b"]
    assert job.base.file.identity == "base"


def test_random_slots_do_not_depend_on_the_base_being_listed() -> None:
    names = llama_names(1)
    models = [checkpoint(name, names) for name in ("base", "a", "b")]
    listed = TIES.replace("ties", "dare_ties")
    unlisted = listed.replace("  - {model: base}\n", "")
    first, second = plan_of(listed, *models), plan_of(unlisted, *models)
    assert jobs_of(first)["lm_head.weight"].slots == (0, 1)
    assert first.digest == second.digest


def test_every_layer_is_renumbered_and_both_ends_are_kept() -> None:
    plan = plan_of(SLICES, checkpoint("a", llama_names(4)), checkpoint("b", llama_names(4)))
    jobs = jobs_of(plan)
    expected = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    for out, (model, index) in enumerate(expected):
        ref = jobs[f"model.layers.{out}.mlp.up_proj.weight"].inputs[0].ref
        assert (ref.file.identity, ref.spec.name) == (model, f"model.layers.{index}.mlp.up_proj.weight")
    assert jobs["model.embed_tokens.weight"].inputs[0].ref.file.identity == "a"
    assert jobs["lm_head.weight"].inputs[0].ref.file.identity == "b"
    assert jobs["model.norm.weight"].inputs[0].ref.file.identity == "b"
    assert plan.output_config["num_hidden_layers"] == 6
    assert fates(plan, "a")["model.layers.3.mlp.up_proj.weight"] == ("dropped", "layer in no slice")
    assert fates(plan, "a")["lm_head.weight"][0] == "dropped"


def test_every_input_tensor_is_in_the_ledger_once() -> None:
    for recipe in (SLICES, LINEAR):
        plan = plan_of(recipe, checkpoint("a", llama_names(4)), checkpoint("b", llama_names(4)))
        for model in ("a", "b"):
            told = [name for line in plan.ledger if line.model == model for name in line.tensors]
            assert sorted(told) == sorted(llama_names(4))


def test_gradients_run_over_the_stack_and_are_zero_outside() -> None:
    recipe = """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters:
  t: [{filter: mlp, value: [0, 1]}, {value: [0.25, 0.5]}]
"""
    jobs = jobs_of(plan_of(recipe, checkpoint("a", llama_names(5)), checkpoint("b", llama_names(5))))
    mlp = [jobs[f"model.layers.{i}.mlp.up_proj.weight"].parameters["t"] for i in range(5)]
    assert mlp == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert jobs["model.embed_tokens.weight"].parameters["t"] == 0.25
    assert jobs["model.norm.weight"].parameters["t"] == 0.25


def test_the_same_model_twice_in_a_slice_is_two_inputs() -> None:
    recipe = """
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 1], parameters: {weight: 0.25}}
      - {model: a, layer_range: [3, 4], parameters: {weight: 0.75}}
"""
    job = jobs_of(plan_of(recipe, checkpoint("a", llama_names(4))))["model.layers.0.mlp.up_proj.weight"]
    assert [each.ref.spec.name for each in job.inputs] == [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
    ]
    assert [each.parameters["weight"] for each in job.inputs] == [0.25, 0.75]


def test_missing_tensors_are_each_named() -> None:
    lacking = {name: shape for name, shape in llama_names(2).items() if "k_proj" not in name}
    with pytest.raises(PlanError) as caught:
        plan_of(LINEAR, checkpoint("a", llama_names(2)), checkpoint("b", lacking))
    text = messages(caught.value)
    for i in range(2):
        assert f"model.layers.{i}.self_attn.k_proj.weight: b lacks it, a has it" in text


def test_on_missing_skip_and_base_are_told() -> None:
    lacking = {name: shape for name, shape in llama_names(1).items() if "k_proj" not in name}
    name = "model.layers.0.self_attn.k_proj.weight"
    models = checkpoint("base", llama_names(1)), checkpoint("a", lacking), checkpoint("b", llama_names(1))
    skipped = plan_of(TIES + "on_missing: skip\n", *models)
    assert name not in jobs_of(skipped)
    assert fates(skipped, "b")[name] == ("dropped", "on_missing: skip")
    taken = plan_of(TIES + "on_missing: base\n", *models)
    assert jobs_of(taken)[name].method == "copy"
    assert fates(taken, "base")[name][0] == "copied"
    assert fates(taken, "b")[name][0] == "dropped"


def test_vocabularies_that_differ_name_the_setting() -> None:
    with pytest.raises(PlanError, match="tokenizer_source"):
        plan_of(LINEAR, checkpoint("a", llama_names(1, vocab=32)), checkpoint("b", llama_names(1, vocab=33)))


def test_a_tied_model_lends_its_embedding_as_head() -> None:
    plan = plan_of(LINEAR, checkpoint("a", llama_names(1)), checkpoint("b", llama_names(1, head=False)))
    job = jobs_of(plan)["lm_head.weight"]
    assert [each.ref.spec.name for each in job.inputs] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert plan.output_config["tie_word_embeddings"] is False
    both = plan_of(LINEAR, checkpoint("a", llama_names(1, head=False)), checkpoint("b", llama_names(1, head=False)))
    assert "lm_head.weight" not in jobs_of(both)


def test_integers_are_copied_and_wider_tensors_rounded_unless_kept() -> None:
    names = {**llama_names(1), "model.steps": (1,), "model.layers.0.router.bias": (8,)}
    dtypes = {"model.steps": DType.I64, "model.layers.0.router.bias": DType.F32}
    models = [checkpoint(name, names, dtypes=dtypes) for name in ("a", "b")]
    plan = plan_of(LINEAR + "dtype: bfloat16\n", *models)
    assert jobs_of(plan)["model.steps"].method == "copy"
    assert jobs_of(plan)["model.layers.0.router.bias"].output.dtype is DType.BF16
    assert any("router.bias" in str(warning) for warning in plan.warnings)
    kept = plan_of(LINEAR + "dtype: bfloat16\nkeep_dtype: ['*.router.bias']\n", *models)
    assert jobs_of(kept)["model.layers.0.router.bias"].output.dtype is DType.F32


def test_quantized_codes_are_refused() -> None:
    names = llama_names(1)
    with pytest.raises(PlanError, match="quantized"):
        plan_of(LINEAR, *(checkpoint(each, names, dtypes={"lm_head.weight": DType.F8_E4M3}) for each in ("a", "b")))


def test_layers_in_order_then_what_follows_them() -> None:
    plan = plan_of(SLICES, checkpoint("a", llama_names(4)), checkpoint("b", llama_names(4)))
    order = [job.output.name for shard in plan.shards for job in shard.jobs]
    assert order[0] == "model.embed_tokens.weight"
    assert set(order[-2:]) == {"lm_head.weight", "model.norm.weight"}
    layers = [int(name.split(".")[2]) for name in order if name.startswith("model.layers.")]
    assert layers == sorted(layers)


def test_shard_size_cuts_between_layers_and_never_in_a_tensor() -> None:
    names = llama_names(4)
    layer_bytes = sum(2 * s[0] * (s[1] if len(s) > 1 else 1) for n, s in names.items() if ".layers.0." in n)
    plan = plan_of(LINEAR, checkpoint("a", names), checkpoint("b", names), shard_bytes=layer_bytes)
    for shard in plan.shards:
        assert shard.tensor_bytes <= layer_bytes
        layers = {job.output.name.split(".")[2] for job in shard.jobs if ".layers." in job.output.name}
        assert len(layers) <= 1
    tiny = plan_of(LINEAR, checkpoint("a", names), checkpoint("b", names), shard_bytes=1)
    assert all(len(shard.jobs) == 1 for shard in tiny.shards)
    assert tiny.shards[0].file_name == f"model-00001-of-{len(tiny.shards):05d}.safetensors"


def test_files_are_as_few_as_their_size_allows_and_as_even_as_their_number_allows() -> None:
    names = llama_names(20)
    models = checkpoint("a", names), checkpoint("b", names)
    (whole,) = plan_of(LINEAR, *models).shards
    layer_bytes = sum(job.output.nbytes for job in whole.jobs if ".layers.0." in job.output.name)
    for shard_bytes in range(layer_bytes, whole.tensor_bytes, layer_bytes // 3):
        sizes = [shard.tensor_bytes for shard in plan_of(LINEAR, *models, shard_bytes=shard_bytes).shards]
        assert sum(sizes) == whole.tensor_bytes
        assert max(sizes) <= shard_bytes
        fewest, free = 0, 0
        for piece in [512, *[layer_bytes] * 20, 16 + 512]:  # what stands before the layers, these, what stands after
            fewest, free = (fewest, free - piece) if piece <= free else (fewest + 1, shard_bytes - piece)
        assert len(sizes) == fewest
        assert max(sizes) - whole.tensor_bytes / len(sizes) <= layer_bytes


def test_digest_is_of_what_bears_on_the_bytes() -> None:
    names = llama_names(2)
    models = checkpoint("a", names), checkpoint("b", names)
    digest = plan_of(LINEAR, *models).digest
    assert plan_of("# a comment\n" + LINEAR, *models).digest == digest
    assert plan_of(LINEAR.replace("0.5", "0.50"), *models).digest == digest
    assert plan_of(LINEAR, *models, seed=7).digest == digest, "linear draws nothing"
    assert plan_of(LINEAR.replace("0.5", "0.4"), *models).digest != digest
    assert plan_of(LINEAR, *models, shard_bytes=1000).digest != digest
    assert plan_of(LINEAR, checkpoint("a", names, identity="other"), models[1]).digest != digest
    assert plan_of(LINEAR + "dtype: float16\n", *models).digest != digest


def test_wider_layers_in_a_later_slice_are_refused() -> None:
    with pytest.raises(PlanError, match="one width"):
        plan_of(SLICES, checkpoint("a", llama_names(4)), checkpoint("b", llama_names(4, inner=24)))


def test_different_depths_name_slices_as_the_remedy() -> None:
    with pytest.raises(PlanError, match="number of layers"):
        plan_of(LINEAR, checkpoint("a", llama_names(4)), checkpoint("b", llama_names(3)))


def test_modules_cover_everything_or_the_rest_is_named() -> None:
    names = {f"text.{name}": shape for name, shape in llama_names(1).items()} | {"vision.patch.weight": (4, 4)}
    config = {"num_hidden_layers": 1}
    models = [checkpoint(each, names, config=config) for each in ("a", "b")]
    recipe = """
merge_method: linear
modules:
  text:
    models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
"""
    with pytest.raises(PlanError, match=r"vision\.patch\.weight"):
        plan_of(recipe, *models)
    more = (
        recipe + "  vision:\n    models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 0}}]\n"
    )
    assert set(jobs_of(plan_of(more, *models))) == set(names)


def test_parameters_of_other_methods_warn_and_unknown_ones_fail() -> None:
    names = llama_names(1)
    models = checkpoint("a", names), checkpoint("b", names)
    plan = plan_of(LINEAR + "parameters: {int8_mask: true}\n", *models)
    assert any("int8_mask" in str(warning) for warning in plan.warnings)
    with pytest.raises(PlanError, match="weight"):
        plan_of(LINEAR + "parameters: {wieght: 1}\n", *models)


def test_a_setting_of_the_whole_tensor_under_a_model_is_told_to_be_ignored() -> None:
    names = llama_names(1)
    models = checkpoint("base", names), checkpoint("a", names), checkpoint("b", names)
    plan = plan_of(TIES.replace("weight: 0.5", "weight: 0.5, lambda: 0.3"), *models)
    (warning,) = plan.warnings
    assert "lambda" in warning.subject
    assert "ignored here" in warning.message
    assert "top-level" in warning.remedy
    assert all(job.parameters["lambda"] == 1 for job in jobs_of(plan).values())


def test_values_outside_a_parameters_range_name_the_line() -> None:
    names = llama_names(1)
    models = checkpoint("base", names), checkpoint("a", names), checkpoint("b", names)
    with pytest.raises(PlanError) as caught:
        plan_of(TIES.replace("weight: 0.5", "weight: many"), *models)
    assert "weight" in messages(caught.value)


@pytest.mark.parametrize(
    ("density", "same_as", "remedy"), [("50", 1, "write 0.5 for 50%"), ("-0.1", 0, ""), ("[0.2, 1.9]", 1, "")]
)
def test_a_share_beyond_its_ends_is_taken_with_one_warning(density: str, same_as: int, remedy: str) -> None:
    names = llama_names(3)
    models = checkpoint("base", names), checkpoint("a", names), checkpoint("b", names)
    plan = plan_of(TIES.replace("density: 0.5", f"density: {density}", 1), *models)
    (warning,) = plan.warnings
    assert warning.subject == "a: density"
    assert f"between 0 and 1: the same as {same_as}" in warning.message
    assert warning.remedy == remedy
    assert warning.line == 6
    assert not plan_of(TIES.replace("density: 0.5", "density: [0, 1]"), *models).warnings


def test_an_end_of_the_stack_that_lacks_a_tensor_is_a_problem_not_another_models_tensor() -> None:
    lacking = {name: shape for name, shape in llama_names(4).items() if name != "model.norm.weight"}
    with pytest.raises(
        PlanError, match=r"model\.norm\.weight: stands after the layers, but the last slice's b lacks it"
    ):
        plan_of(SLICES, checkpoint("a", llama_names(4)), checkpoint("b", lacking))


def test_the_device_is_in_the_digest_of_methods_that_round_differently_on_each() -> None:
    names = llama_names(1)
    models = checkpoint("base", names), checkpoint("a", names)
    for method, differs in (("arcee_fusion", True), ("task_arithmetic", False)):
        weights = "" if differs else ", parameters: {weight: 1}"
        recipe = f"merge_method: {method}\nbase_model: base\nmodels: [{{model: base}}, {{model: a{weights}}}]\n"
        digests = {plan_of(recipe, *models, device=device).digest for device in ("cpu", "cuda")}
        assert (len(digests) == 2) is differs
