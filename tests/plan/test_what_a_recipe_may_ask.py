"""Recipes at the edge of what a method or a model allows: refused by name, or understood, never a crash."""

import pytest
from planning import checkpoint, jobs_of, llama_names, plan_of

from raymerge.dtypes import DType
from raymerge.errors import PlanError
from raymerge.methods import all_methods
from raymerge.methods.declaration import Base

APART = [name for name, method in all_methods().items() if method.base in (Base.REQUIRED, Base.OPTIONAL)]


@pytest.mark.parametrize("method", APART)
def test_a_slice_of_the_base_alone_is_refused(method: str) -> None:
    recipe = f"""
merge_method: {method}
base_model: a
parameters: {{weight: 1, density: 0.5, t: 0.5}}
slices:
  - sources: [{{model: a, layer_range: [0, 2]}}]
"""
    with pytest.raises(PlanError, match="found 0"):
        plan_of(recipe, checkpoint("a", llama_names(2)))


def test_a_module_that_is_no_part_of_any_model_is_refused() -> None:
    recipe = """
merge_method: passthrough
modules:
  model: {models: [{model: a}]}
  lm_head: {models: [{model: a}]}
  vision: {models: [{model: a}]}
"""
    with pytest.raises(PlanError, match=r"modules\.vision"):
        plan_of(recipe, checkpoint("a", llama_names(2)))
    assert plan_of(recipe.replace("  vision: {models: [{model: a}]}\n", ""), checkpoint("a", llama_names(2)))


def test_every_rounded_tensor_is_counted_once() -> None:
    names = llama_names(2)
    plan = plan_of(
        "{merge_method: passthrough, dtype: float16, models: [{model: a}]}", checkpoint("a", names, dtype=DType.F32)
    )
    assert [warning.message.split()[0] for warning in plan.warnings] == [str(len(names))]


@pytest.mark.parametrize(("written", "meant"), [("1.0", True), ("1", True), ("0.0", False), ("true", True)])
def test_switches_may_be_numbers(written: str, meant: bool) -> None:
    recipe = f"""
merge_method: linear
parameters: {{normalize: {written}}}
models:
  - {{model: a, parameters: {{weight: 1}}}}
  - {{model: b, parameters: {{weight: 1}}}}
"""
    models = [checkpoint(name, llama_names(1)) for name in "ab"]
    assert jobs_of(plan_of(recipe, *models))["lm_head.weight"].parameters["normalize"] is meant
    with pytest.raises(PlanError, match="expected true or false"):
        plan_of(recipe.replace(written, "0.5"), *models)


def test_a_tied_last_slice_gives_its_own_head() -> None:
    """Its last layers were trained before its embedding; another model's head would read them wrongly."""
    untied = checkpoint("a", llama_names(2))
    tied = checkpoint("b", llama_names(2, head=False), config={"num_hidden_layers": 2, "tie_word_embeddings": True})
    recipe = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [0, 2]}]
"""
    plan = plan_of(recipe, untied, tied)
    head = jobs_of(plan)["lm_head.weight"].inputs[0].ref
    assert (head.file.identity, head.spec.name) == ("b", "model.embed_tokens.weight")
    assert plan.output_config.get("tie_word_embeddings") is not True
    dropped = [line for line in plan.ledger if line.fate == "dropped" and "lm_head.weight" in line.tensors]
    assert [line.model for line in dropped] == ["a"]


def test_the_ends_of_a_stack_must_name_their_tensors_alike() -> None:
    plain = llama_names(2)
    nested = {name.replace("model.layers.", "model.blocks."): shape for name, shape in plain.items()}
    models = checkpoint("a", plain), checkpoint("b", nested, config={"text_config": {"num_hidden_layers": 2}})
    head = "merge_method: passthrough\nslices:\n"
    one, other = (f"  - sources: [{{model: {name}, layer_range: [0, 2]}}]\n" for name in "ab")
    with pytest.raises(PlanError, match=r"model\.blocks"):
        plan_of(head + one + other, *models)
    ends = [name for name in jobs_of(plan_of(head + one + other + one, *models)) if "layers" not in name]
    assert ends == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def test_layers_without_a_prefix_are_stacked() -> None:
    names = {f"{i}.weight": (4, 4) for i in range(3)} | {"head.weight": (2, 4)}
    recipe = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: a, layer_range: [1, 3]}]
"""
    model = checkpoint("a", names, config={"num_hidden_layers": 3})
    jobs = jobs_of(plan_of(recipe, model))
    taken = {name: job.inputs[0].ref.spec.name for name, job in jobs.items()}
    assert taken == {
        "0.weight": "0.weight",
        "1.weight": "1.weight",
        "2.weight": "1.weight",
        "3.weight": "2.weight",
        "head.weight": "head.weight",
    }


def test_the_remedy_for_tensors_that_no_module_names_helps() -> None:
    recipe = "merge_method: passthrough\nmodules:\n  model.layers: {models: [{model: a}]}\n"
    models = checkpoint("a", {**llama_names(2), "visual.blocks.0.weight": (2, 2), "visual.norm.weight": (2,)})
    with pytest.raises(PlanError, match="says what becomes of model") as caught:
        plan_of(recipe, models)
    said = str(caught.value)
    assert "on_missing" not in said
    named = said.partition("add modules named ")[2].split(", ")
    assert named == ["model.embed_tokens", "model.norm", "lm_head", "visual"]
    helped = recipe + "".join(f"  {name}: {{models: [{{model: a}}]}}\n" for name in named)
    assert jobs_of(plan_of(helped, models)).keys() == models.tensors.keys()
