"""One architecture stored in several ways: what is read as the leading model names it, what is copied from it, and what
is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
from planning import checkpoint, jobs_of, llama_names, plan_of

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.steps import GatherRows
from raymerge.errors import PlanError
from raymerge.planning.nouns import Plan, TensorJob

LINEAR = "merge_method: linear\nbase_model: base\nparameters: {weight: 1}\nmodels: [{model: base}, {model: a}]\n"
VISION = {"vision_tower.layers.0.mlp.up_proj.weight": (4, 4), "multi_modal_projector.weight": (4, 8)}
CONFIG = {"num_hidden_layers": 2}
NESTED: dict[str, Any] = {"text_config": CONFIG, "vision_config": {"num_hidden_layers": 1}}
# How multimodal models have named the tensors of their language model, over time.
OLD = ("model.", "language_model.model.", "lm_head", "language_model.lm_head")
NEW = ("model.", "model.language_model.", "lm_head", "lm_head")
BESIDE = ("model.", "model.", "lm_head", "lm_head")
WAYS = pytest.mark.parametrize("way", [OLD, NEW, BESIDE], ids=["old", "new", "beside"])


def renamed(name: str, way: tuple[str, ...]) -> str:
    for plain, nested in (way[:2], way[2:]):
        if name.startswith(plain):
            return nested + name.removeprefix(plain)
    return name


def multimodal(reference: str, way: tuple[str, ...], *, layers: int = 2, head: bool = True) -> Checkpoint:
    text = {renamed(name, way): shape for name, shape in llama_names(layers, head=head).items()}
    vision = {f"model.{name}" if way is NEW else name: shape for name, shape in VISION.items()}
    return checkpoint(reference, vision | text, config=NESTED)


def text_model(reference: str, *, head: bool = True) -> Checkpoint:
    return checkpoint(reference, llama_names(2, head=head), config=CONFIG)


def inputs_of(job: TensorJob) -> dict[str, str]:
    return {ref.file.identity: ref.spec.name for ref in job.refs}


def told(plan: Plan, name: str) -> set[tuple[str, str, str]]:
    return {(line.model, line.fate, line.rule) for line in plan.ledger if name in line.tensors}


def refused(recipe: str, *models: Checkpoint) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(recipe, *models)
    return str(caught.value)


@WAYS
@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_a_text_model_merges_into_the_text_tower_and_the_rest_is_copied(way: tuple[str, ...], method: str) -> None:
    recipe = LINEAR.replace("linear", method).replace("{weight: 1}", "{weight: 1, t: 0.5}")
    base, text = multimodal("base", way), text_model("a")
    plan = plan_of(recipe, base, text)
    jobs = jobs_of(plan)
    assert jobs.keys() == base.tensors.keys()
    for plain in text.tensors:
        assert inputs_of(jobs[renamed(plain, way)]) == {"base": renamed(plain, way), "a": plain}
    for name in base.tensors.keys() - {renamed(plain, way) for plain in text.tensors}:
        assert inputs_of(jobs[name]) == {"base": name}
        assert jobs[name].method == "copy"
        rule = "beside the language model, which is all that other inputs have"
        assert told(plan, name) == {("base", "copied", rule)}
    assert plan.output_config["vision_config"] == NESTED["vision_config"]


@WAYS
def test_rest_is_copied_even_where_missing_tensors_are_skipped(way: tuple[str, ...]) -> None:
    base = multimodal("base", way)
    assert jobs_of(plan_of(LINEAR + "on_missing: skip", base, text_model("a"))).keys() == base.tensors.keys()


@WAYS
def test_tied_heads_on_either_side(way: tuple[str, ...]) -> None:
    base, text = multimodal("base", way, head=False), text_model("a", head=False)
    assert jobs_of(plan_of(LINEAR, base, text)).keys() == base.tensors.keys()
    own = plan_of(LINEAR, base, text_model("a"))
    head = renamed("lm_head.weight", way)
    assert inputs_of(jobs_of(own)[head]) == {"base": renamed("model.embed_tokens.weight", way), "a": "lm_head.weight"}


@pytest.mark.parametrize(("first", "second"), [(OLD, NEW), (NEW, OLD)])
def test_multimodal_models_of_two_times(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    base, other = multimodal("base", first), multimodal("a", second)
    jobs = jobs_of(plan_of(LINEAR, base, other))
    assert jobs.keys() == base.tensors.keys()
    assert {len(job.refs) for job in jobs.values()} == {2}
    assert {ref.spec.name for job in jobs.values() for ref in job.refs} == base.tensors.keys() | other.tensors.keys()


def test_a_prefix_that_wraps_the_whole_model() -> None:
    plain = {f"h.{i}.ln.weight": (8,) for i in range(2)} | {"wte.weight": (32, 8), "ln_f.weight": (8,)}
    base = checkpoint("base", {f"transformer.{name}": shape for name, shape in plain.items()}, config={"n_layer": 2})
    jobs = jobs_of(plan_of(LINEAR, base, checkpoint("a", plain, config={"n_layer": 2})))
    assert jobs.keys() == base.tensors.keys()
    assert {len(job.refs) for job in jobs.values()} == {2}


def test_slices_of_a_text_model_in_a_multimodal_one() -> None:
    base, text = multimodal("base", OLD), text_model("a")
    source = "{{model: {}, layer_range: [0, 2]}}"
    lines = (f"- sources: [{source.format(model)}]\n" for model in ("base", "a"))
    plan = plan_of("merge_method: passthrough\nbase_model: base\nslices:\n" + "".join(lines), base, text)
    jobs = jobs_of(plan)
    assert inputs_of(jobs["language_model.model.layers.3.mlp.up_proj.weight"]) == {
        "a": "model.layers.1.mlp.up_proj.weight"
    }
    assert jobs.keys() >= VISION.keys()
    assert plan.output_config["text_config"]["num_hidden_layers"] == 4


def test_two_towers_that_could_be_meant_are_refused_by_name() -> None:
    names = llama_names(2)
    towers = {f"{tower}.{name}": shape for tower in ("thinker", "talker") for name, shape in names.items()}
    base = checkpoint("base", towers, config={"thinker_config": CONFIG, "talker_config": CONFIG})
    said = refused(LINEAR, base, text_model("a"))
    assert "a: its layers model.layers.N could be thinker.model.layers.N, talker.model.layers.N of base" in said
    assert said.count("\n") == 0


def test_a_name_that_could_be_two_is_refused() -> None:
    base = multimodal("base", NEW)
    twice = {**base.tensors, "extra.weight": None, "model.extra.weight": None}
    names = {name: base.tensors[name].spec.shape if name in base.tensors else (8,) for name in twice}
    two = checkpoint("base", names, config=NESTED)
    text = checkpoint("a", {**llama_names(2), "model.extra.weight": (8,)}, config=CONFIG)
    said = refused(LINEAR, two, text)
    assert "a: model.extra.weight: could be model.extra.weight or extra.weight of base" in said


def test_nothing_is_copied_for_a_model_that_lacks_more_than_towers() -> None:
    base = multimodal("base", NEW)
    names = llama_names(2)
    names.pop("model.norm.weight")
    said = refused(LINEAR, base, checkpoint("a", names, config=CONFIG))
    assert "model.language_model.norm.weight: a lacks it, base has it" in said
    plain = checkpoint("base", {**llama_names(2), "classifier.weight": (2, 8)}, config=CONFIG)
    assert "classifier.weight: a lacks it" in refused(LINEAR, plain, text_model("a"))


def test_modules_name_their_tensors_themselves() -> None:
    recipe = """merge_method: passthrough
modules:
  encoder: {models: [{model: a}]}
  decoder: {models: [{model: b}]}
"""
    a, b = ({f"{side}.layers.{i}.mlp.weight": (4, 4) for i in range(2)} for side in ("encoder", "decoder"))
    models = checkpoint("a", a, config={"encoder_layers": 2}), checkpoint("b", b, config={"decoder_layers": 2})
    assert jobs_of(plan_of(recipe, *models)).keys() == a.keys() | b.keys()


def phi(reference: str, *, q: int = 8, kv: int = 4, bias: bool = False, order: str = "qkv_proj") -> Checkpoint:
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 8)}
    for i in range(2):
        names[f"model.layers.{i}.self_attn.{order}.weight"] = (q + 2 * kv, 8)
        if bias:
            names[f"model.layers.{i}.self_attn.{order}.bias"] = (q + 2 * kv,)
        names[f"model.layers.{i}.mlp.gate_up_proj.weight"] = (24, 8)
    return checkpoint(reference, names, config=CONFIG)


def apart(reference: str, *, q: int = 8, kv: int = 4, bias: bool = False) -> Checkpoint:
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 8)}
    for i in range(2):
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            names[f"model.layers.{i}.self_attn.{part}_proj.weight"] = (rows, 8)
            if bias:
                names[f"model.layers.{i}.self_attn.{part}_proj.bias"] = (rows,)
        names[f"model.layers.{i}.mlp.gate_proj.weight"] = (12, 8)
        names[f"model.layers.{i}.mlp.up_proj.weight"] = (12, 8)
    return checkpoint(reference, names, config=CONFIG)


@pytest.mark.parametrize("fused", ["qkv_proj", "W_pack"])
def test_rows_of_fused_matrices_are_read_as_the_base_has_them(fused: str) -> None:
    base, other = apart("base", bias=True), phi("a", bias=True, order=fused)
    plan = plan_of(LINEAR, base, other)
    jobs = jobs_of(plan)
    assert jobs.keys() == base.tensors.keys()
    whole = other.tensors[f"model.layers.1.self_attn.{fused}.weight"]
    places = [
        (jobs[f"model.layers.1.self_attn.{part}_proj.weight"].inputs[1].ref.offset - whole.offset) // (8 * 2)
        for part in "qkv"
    ]
    assert places == [0, 8, 12]
    ends = whole.offset + whole.nbytes
    last = jobs["model.layers.1.self_attn.v_proj.weight"].inputs[1].ref
    assert last.offset + last.nbytes == ends
    bias = jobs["model.layers.0.self_attn.k_proj.bias"].inputs[1].ref
    assert (bias.offset - other.tensors[f"model.layers.0.self_attn.{fused}.bias"].offset, bias.nbytes) == (16, 8)
    up = jobs["model.layers.0.mlp.up_proj.weight"].inputs[1].ref
    assert up.offset - other.tensors["model.layers.0.mlp.gate_up_proj.weight"].offset == 12 * 8 * 2
    for name in other.tensors:
        assert [fate for _, fate, _ in told(plan, name) if fate != "merged"] == [], name
        assert told(plan, name), name


def moe(reference: str, *, fused: bool, hidden: int = 8, inner: int = 6, turned: bool = False) -> Checkpoint:
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, hidden)}
    for i in range(2):
        head = f"model.layers.{i}.mlp.experts."
        if fused:
            gate_up = (3, hidden, 2 * inner) if turned else (3, 2 * inner, hidden)
            names |= {f"{head}gate_up_proj": gate_up, f"{head}down_proj": (3, hidden, inner)}
            continue
        for expert in range(3):
            names |= {f"{head}{expert}.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
            names[f"{head}{expert}.down_proj.weight"] = (hidden, inner)
    return checkpoint(reference, names, config=CONFIG)


def test_experts_in_one_tensor_are_read_one_by_one() -> None:
    base, other = moe("base", fused=False), moe("a", fused=True)
    jobs = jobs_of(plan_of(LINEAR, base, other))
    assert jobs.keys() == base.tensors.keys()
    head = "model.layers.1.mlp.experts."
    start = other.tensors[f"{head}gate_up_proj"].offset
    found = [
        (jobs[f"{head}{i}.{part}_proj.weight"].inputs[1].ref.offset - start) // (6 * 8 * 2)
        for i in range(3)
        for part in ("gate", "up")
    ]
    assert found == [0, 1, 2, 3, 4, 5]
    down = [jobs[f"{head}{i}.down_proj.weight"].inputs[1].ref.offset for i in range(3)]
    assert [(each - other.tensors[f"{head}down_proj"].offset) // (6 * 8 * 2) for each in down] == [0, 1, 2]


def gathered(job: TensorJob) -> list[str]:
    (step,) = job.inputs[1].ref.steps
    assert isinstance(step, GatherRows)
    return [source.spec.name for source in step.sources]


@pytest.mark.parametrize("fused", ["qkv_proj", "W_pack"])
def test_parts_are_put_together_where_the_base_is_fused(fused: str) -> None:
    base, other = phi("base", bias=True, order=fused), apart("a", bias=True)
    plan = plan_of(LINEAR, base, other)
    jobs = jobs_of(plan)
    assert jobs.keys() == base.tensors.keys()
    head = "model.layers.1.self_attn."
    assert gathered(jobs[f"{head}{fused}.weight"]) == [f"{head}{each}_proj.weight" for each in "qkv"]
    assert gathered(jobs[f"{head}{fused}.bias"]) == [f"{head}{each}_proj.bias" for each in "qkv"]
    mlp = "model.layers.0.mlp."
    assert gathered(jobs[f"{mlp}gate_up_proj.weight"]) == [f"{mlp}{each}_proj.weight" for each in ("gate", "up")]
    assert all(told(plan, name) for name in other.tensors)


def test_experts_are_put_together_in_the_order_of_their_numbers() -> None:
    base, other = moe("base", fused=True), moe("a", fused=False)
    jobs = jobs_of(plan_of(LINEAR, base, other))
    assert jobs.keys() == base.tensors.keys()
    head = "model.layers.1.mlp.experts."
    order = [f"{head}{i}.{part}_proj.weight" for i in range(3) for part in ("gate", "up")]
    assert gathered(jobs[f"{head}gate_up_proj"]) == order
    assert gathered(jobs[f"{head}down_proj"]) == [f"{head}{i}.down_proj.weight" for i in range(3)]


REFUSED = {
    "woven": (apart("base"), phi("a", order="query_key_value"), "attention fused (model.layers.0.self_attn.query_key"),
    "other rows": (apart("base", q=8, kv=8), phi("a"), "attention fused (model.layers.0.self_attn.qkv_proj.weight"),
    "transposed": (moe("base", fused=False), moe("a", fused=True, turned=True), "experts fused (model.layers.0.mlp."),
    "square": (moe("base", fused=False, inner=4), moe("a", fused=True, inner=4), "experts fused (model.layers.0.mlp."),
}  # fmt: skip
APART = {
    "woven": (phi("base", order="query_key_value"), apart("a"), "attention apart (model.layers.0.self_attn.q_proj"),
    "other rows": (phi("base"), apart("a", q=8, kv=8), "attention apart (model.layers.0.self_attn.q_proj"),
    "transposed": (moe("base", fused=True, turned=True), moe("a", fused=False), "experts apart (model.layers.0.mlp."),
    "square": (moe("base", fused=True, inner=4), moe("a", fused=False, inner=4), "experts apart (model.layers.0.mlp."),
}  # fmt: skip
REFUSED |= {f"{case}, the base fused": of for case, of in APART.items()}


@pytest.mark.parametrize("on_missing", ["error", "base", "skip"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_apart_is_refused_in_one_line(case: str, on_missing: str) -> None:
    base, other, said = REFUSED[case]
    found = refused(f"{LINEAR}on_missing: {on_missing}", base, other)
    assert f"a: has its {said}" in found
    assert "lacks it" not in found
