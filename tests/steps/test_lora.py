"""A model with an adapter is what PEFT makes of the two, read tensor by tensor, and no copy of the base is written."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import raymerge
from raymerge.errors import PlanError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
# Every warning of another library's own making stays out of what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")

ATTENTION = ["q_proj", "v_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ATTENTION},
    "every linear layer": {"target_modules": "all-linear", "r": 3},
    "patterns": {
        "target_modules": [*ATTENTION, "down_proj"],
        "rank_pattern": {"down_proj": 7, r"layers\.1\..*\.q_proj": 2},
        "alpha_pattern": {"v_proj": 5},
    },
    "rank-stabilised": {"target_modules": ATTENTION, "use_rslora": True, "rank_pattern": {"v_proj": 6}},
    "saved modules and biases": {
        "target_modules": ATTENTION,
        "modules_to_save": ["lm_head", "input_layernorm"],
        "bias": "lora_only",
    },
    "embeddings": {"target_modules": ["embed_tokens", "o_proj"], "bias": "all"},
}


def llama(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "dtype": torch.float32,
        } | settings
    )  # fmt: skip
    return saved(transformers.LlamaForCausalLM(config), folder)


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    return saved(transformers.GPT2LMHeadModel(config), folder)


def saved(model: Any, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: a value that stays 0 or 1 shows nothing
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """An adapter with random factors on disk, and the tensors of PEFT's merge of it, computed in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | settings)
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder)
    return folder, {name: tensor.double() for name, tensor in adapted.double().merge_and_unload().state_dict().items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama") / "base")


def merged(out: Path, *models: str, method: str = "linear", **settings: Any) -> dict[str, torch.Tensor]:
    recipe = {
        "merge_method": method,
        "models": [
            {"model": model, **({} if method == "passthrough" else {"parameters": {"weight": 1.0}})} for model in models
        ],
        **settings,
    }
    raymerge.merge(recipe, out, executor="inline")
    return {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        scale = expected[name].abs().max()
        assert (tensor.double() - expected[name]).abs().max() <= 1e-6 * scale, name


@pytest.mark.parametrize("method", ["linear", "passthrough"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_is_what_peft_merges(base: Path, tmp_path: Path, variant: str, method: str) -> None:
    folder, expected = adapter(base, tmp_path / "lora", **VARIANTS[variant])
    found = merged(tmp_path / "out", f"{base}+{folder}", method=method)
    plain = load_file(base / "model.safetensors")
    assert set(found) == set(plain)
    assert any(not torch.equal(found[name], plain[name]) for name in plain)
    assert_close(found, expected)


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc", "wte"]])
def test_weights_that_are_stored_transposed(tmp_path: Path, targets: list[str]) -> None:
    base = gpt2(tmp_path / "base")
    folder, expected = adapter(base, tmp_path / "lora", target_modules=targets, fan_in_fan_out=True)
    assert_close(merged(tmp_path / "out", f"{base}+{folder}"), expected)


def test_nine_adapters_of_one_base_are_merged_without_a_copy_of_it(base: Path, tmp_path: Path) -> None:
    rest = [adapter(base, tmp_path / f"lora{i}", seed=i, target_modules=ATTENTION, r=i + 1) for i in range(9)]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    planned = raymerge.plan({"merge_method": "linear", "models": sources(base, *(folder for folder, _ in rest))})
    found = merged(out, *(f"{base}+{folder}" for folder, _ in rest))
    expected = {name: sum(tensors[name] for _, tensors in rest) / 9 for name in found}
    assert_close(found, expected)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.parent == out for path in written)
    plain = (base / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in written if path.suffix == ".safetensors") < plain + 20_000
    factors = sum(path.stat().st_size for folder, _ in rest for path in folder.glob("*.safetensors"))
    assert planned.read_bytes < plain + factors  # the base is read once, not nine times


def sources(base: Path, *folders: Path, weight: float = 1.0) -> list[dict[str, Any]]:
    return [{"model": f"{base}+{folder}", "parameters": {"weight": weight}} for folder in folders]


def test_an_adapter_is_an_input_like_any_other(base: Path, tmp_path: Path) -> None:
    folder, expected = adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    found = merged(
        tmp_path / "out", f"{base}+{folder}", method="task_arithmetic", base_model=str(base), parameters={"lambda": 2.0}
    )
    plain = load_file(base / "model.safetensors")
    assert_close(found, {name: 2 * expected[name] - plain[name].double() for name in plain})


def test_bfloat16_is_rounded_once(base: Path, tmp_path: Path) -> None:
    """Peer tools add a rounded product to a rounded weight; here only the result is rounded."""
    folder, expected = adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    found = merged(tmp_path / "out", f"{base}+{folder}", dtype="bfloat16")
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].float().bfloat16()), name


def test_every_tensor_of_an_adapter_is_in_the_ledger(base: Path, tmp_path: Path) -> None:
    folder, _ = adapter(base, tmp_path / "lora", **VARIANTS["saved modules and biases"])
    planned = raymerge.plan({"merge_method": "linear", "models": sources(base, folder)})
    rules = {name: line.rule for line in planned.ledger for name in line.tensors}
    stored = set(load_file(folder / "adapter_model.safetensors"))
    assert stored <= set(rules)
    assert rules["base_model.model.lm_head.weight"] == "the adapter's tensor in place of the base's"


def test_another_scale_is_another_plan(base: Path, tmp_path: Path) -> None:
    folder, _ = adapter(base, tmp_path / "lora", target_modules=ATTENTION)
    recipe = {"merge_method": "linear", "models": sources(base, folder)}
    before = raymerge.plan(recipe).digest
    assert raymerge.plan(recipe).digest == before
    change(folder, lora_alpha=7)
    assert raymerge.plan(recipe).digest != before


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.fixture(scope="module")
def plain_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(base, tmp_path_factory.mktemp("plain") / "lora", target_modules=ATTENTION)[0]


REFUSED_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "another kind": ({"peft_type": "LOHA"}, "LOHA"),
    "a base that changes": ({"init_lora_weights": "pissa"}, "pissa"),
    "rows of the embedding": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "a bias of the factors": ({"lora_bias": True}, "lora_bias"),
    "no rank": ({"r": 0}, "r 0"),
    "another rank": ({"r": 5}, "ranks 4 and 4, adapter_config.json says 5"),
    "a pattern that is none": ({"rank_pattern": {"(": 4}}, "rank_pattern '\\('"),
}


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_what_is_no_plain_addition_is_refused_by_name(
    base: Path, plain_adapter: Path, tmp_path: Path, case: str
) -> None:
    settings, expected = REFUSED_SETTINGS[case]
    folder = Path(shutil.copytree(plain_adapter, tmp_path / "lora"))
    change(folder, **settings)
    with pytest.raises(PlanError, match=expected):
        raymerge.plan({"merge_method": "linear", "models": sources(base, folder)})


def drop_second_factor(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]


def add_layer(tensors: dict[str, torch.Tensor]) -> None:
    for side in "AB":
        name = f"base_model.model.model.layers.{{}}.self_attn.q_proj.lora_{side}.weight"
        tensors[name.format(2)] = tensors[name.format(1)].clone()


def add_tokens(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(98, 48)


def add_magnitudes(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = torch.ones(48)


REFUSED_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "half a product": (drop_second_factor, "layers.1.self_attn.q_proj.lora_A.weight, which is no part"),
    "a layer too many": (add_layer, "1 of its 5 targets are not in .*layers.2.self_attn.q_proj.weight"),
    "added tokens": (add_tokens, r"shape \(98, 48\), .*\(96, 48\): tokens were added"),
    "DoRA without saying so": (add_magnitudes, "lora_magnitude_vector, which is no part of a plain LoRA"),
    "nothing": (dict.clear, "holds no tensor"),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_tensors_that_have_no_place_are_named(base: Path, plain_adapter: Path, tmp_path: Path, case: str) -> None:
    damage, expected = REFUSED_TENSORS[case]
    folder = Path(shutil.copytree(plain_adapter, tmp_path / "lora"))
    rewrite(folder, damage)
    with pytest.raises(PlanError, match=expected):
        raymerge.plan({"merge_method": "linear", "models": sources(base, folder)})


def test_an_adapter_for_another_base_is_refused(plain_adapter: Path, tmp_path: Path) -> None:
    wider = llama(tmp_path / "wider", hidden_size=64)
    with pytest.raises(PlanError, match=r"product has shape \(48, 48\), model.layers.0.self_attn.q_proj.weight"):
        raymerge.plan({"merge_method": "linear", "models": sources(wider, plain_adapter)})
    other = gpt2(tmp_path / "other")
    with pytest.raises(PlanError, match=r"matches no tensor of .*name the model it was made for"):
        raymerge.plan({"merge_method": "linear", "models": sources(other, plain_adapter)})


def test_a_model_is_no_adapter(base: Path) -> None:
    with pytest.raises(PlanError, match="is no adapter: it lacks adapter_model"):
        raymerge.plan({"merge_method": "linear", "models": sources(base, base)})


def test_names_may_lack_the_first_part(base: Path, plain_adapter: Path, tmp_path: Path) -> None:
    """Adapters of a body alone name its tensors without the part that the whole model puts in front."""
    folder = Path(shutil.copytree(plain_adapter, tmp_path / "body"))
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {name.replace("base_model.model.model.", "base_model.model."): tensors.pop(name) for name in list(tensors)}
        ),
    )
    one, other = merged(tmp_path / "one", f"{base}+{plain_adapter}"), merged(tmp_path / "other", f"{base}+{folder}")
    assert all(torch.equal(one[name], other[name]) for name in one)
