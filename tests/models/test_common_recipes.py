"""The recipes that most people start from, as they stand in configs/, against the formulas of their methods.

The models have the published names: a folder named like a hub id wins, so the files run unchanged where such folders
are. The stand-ins have 32 layers, as the recipes expect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import method_oracles as oracle
import numpy as np
import pytest
from checkpoints import read_header, read_tensors, write_llama

import raymerge

CONFIGS = Path(__file__).parents[2] / "configs"
LAYERS = 32
SHAPE: dict[str, Any] = {"layers": LAYERS, "hidden": 16, "heads": 4, "kv_heads": 2, "vocab": 48, "intermediate": 40}
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
IN_A_LAYER = (
    "input_layernorm.weight", "mlp.down_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
    "post_attention_layernorm.weight", "self_attn.k_proj.weight", "self_attn.o_proj.weight", "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
)  # fmt: skip

Arrays = dict[str, np.ndarray]
Run = Callable[[str], tuple[Arrays, str]]


def names(layers: Sequence[int] = (0, 15, 31)) -> list[str]:
    return [*OUTSIDE, *(f"model.layers.{layer}.{suffix}" for layer in layers for suffix in IN_A_LAYER)]


@pytest.fixture(scope="module")
def hub_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds org/name for every model that configs/ names: fine-tunes of one model."""
    folder = tmp_path_factory.mktemp("published")
    found = {
        model
        for config in sorted(CONFIGS.glob("*.yml"))
        for model in re.findall(r"^ *(?:- )?(?:base_)?model: *(\S+)", config.read_text(), re.MULTILINE)
    }
    assert len(found) == 11
    common = write_llama(folder / "common", **SHAPE)
    for seed, model in enumerate(sorted(found), start=1):
        # Changes as large as the weights: tensors of A and B then stand at angles where SLERP is no mere average.
        write_llama(folder / model, seed=seed, delta_of=common, delta_scale=0.02, **SHAPE)
    return folder


@pytest.fixture(scope="module")
def run(hub_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run("ties") merges configs/ties.yml once; the tensors of the result and its folder."""
    done: dict[str, tuple[Arrays, str]] = {}

    def merged(name: str) -> tuple[Arrays, str]:
        if name not in done:
            out = tmp_path_factory.mktemp("merged") / name
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(hub_like)
                raymerge.merge(CONFIGS / f"{name}.yml", out, executor="inline", out_shard_size="100KB")
            done[name] = read_tensors(out), str(out)
        return done[name]

    return merged


@pytest.fixture(scope="module")
def of(hub_like: Path) -> Callable[[str], Arrays]:
    return lambda model: read_tensors(hub_like / model)


def assert_correctly_rounded(found: np.ndarray, exact: np.ndarray, *, precision: int, least: int) -> None:
    """At most (0.5 + 2^-10) ulp from `exact`; `precision` is in bits, 2**`least` the smallest normal number."""
    exponent = np.frexp(np.abs(exact))[1] - 1
    ulp = np.ldexp(1.0, np.maximum(exponent, least) - (precision - 1))
    worst = np.max(np.abs(found.astype(np.float64) - exact) / ulp)
    assert worst <= 0.5 + 2**-10, worst


def assert_bfloat16(found: np.ndarray, exact: np.ndarray) -> None:
    assert_correctly_rounded(found, exact, precision=8, least=-126)


def assert_float16(found: np.ndarray, exact: np.ndarray) -> None:
    assert_correctly_rounded(found, exact, precision=11, least=-14)


def gradient(values: Sequence[float], layer: int) -> float:
    return float(np.interp(layer / (LAYERS - 1), np.linspace(0, 1, len(values)), values))


def slerp_t(name: str) -> float:
    found = re.match(r"model\.layers\.(\d+)\.", name)
    if found and "self_attn" in name:
        return gradient([0, 0.5, 0.3, 0.7, 1], int(found[1]))
    if found and "mlp" in name:
        return gradient([1, 0.5, 0.7, 0.3, 0], int(found[1]))
    return 0.5


def test_slerp_follows_its_gradients(run: Run, of: Callable[[str], Arrays]) -> None:
    merged, _ = run("slerp")
    a, b = of("AIDC-ai-business/Marcoroni-7B-v3"), of("EmbeddedLLM/Mistral-7B-Merge-14-v0.1")
    assert merged.keys() == a.keys()
    for name in names():
        assert_bfloat16(merged[name], oracle.slerp(a[name], b[name], slerp_t(name)))
    ends = {"self_attn.q_proj": (a, b), "mlp.up_proj": (b, a)}
    for part, (first, last) in ends.items():
        np.testing.assert_array_equal(*(each[f"model.layers.0.{part}.weight"] for each in (merged, first)))
        np.testing.assert_array_equal(*(each[f"model.layers.31.{part}.weight"] for each in (merged, last)))


def test_ties(run: Run, of: Callable[[str], Arrays]) -> None:
    merged, _ = run("ties")
    base = of("mistralai/Mistral-7B-v0.1")
    models = [of("OpenPipe/mistral-ft-optimized-1218"), of("mlabonne/NeuralHermes-2.5-Mistral-7B")]
    assert merged.keys() == base.keys()
    for name in names():
        exact = oracle.ties([each[name] for each in models], base[name], (0.5, 0.3), (0.5, 0.5))
        assert_float16(merged[name], exact)


def test_dare_ties(run: Run, of: Callable[[str], Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    merged, _ = run("dare_ties")
    base = of("mistralai/Mistral-7B-v0.1")
    models = [
        of(model)
        for model in ("samir-fama/SamirGPT-v1", "abacusai/Slerp-CM-mist-dpo", "EmbeddedLLM/Mistral-7B-Merge-14-v0.2")
    ]
    assert merged.keys() == base.keys()
    draw = oracle.random_masks
    for name in names():
        monkeypatch.setattr(oracle, "random_masks", lambda x, density, name=name: draw(x, density, tensor=name))
        exact = oracle.dare([each[name] for each in models], base[name], (0.4, 0.3, 0.3), (0.53,) * 3, signs=True)
        assert_bfloat16(merged[name], exact)


def test_linear(run: Run, of: Callable[[str], Arrays]) -> None:
    merged, _ = run("linear")
    models = [
        of(model) for model in ("psmathur/orca_mini_v3_13b", "WizardLM/WizardLM-13B-V1.2", "garage-bAInd/Platypus2-13B")
    ]
    assert merged.keys() == models[0].keys()
    for name in names():
        assert_float16(merged[name], oracle.linear([each[name] for each in models], (1.0, 0.3, 0.5)))


def test_passthrough_stacks_32_and_8_layers(run: Run, of: Callable[[str], Arrays]) -> None:
    """Embeddings come from the first slice, the last norm and the head from the last."""
    merged, _ = run("passthrough")
    first, second = of("OpenPipe/mistral-ft-optimized-1218"), of("mlabonne/NeuralHermes-2.5-Mistral-7B")
    layers = [(first, layer) for layer in range(32)] + [(second, layer) for layer in range(24, 32)]
    expected = {
        f"model.layers.{index}.{suffix}": model[f"model.layers.{layer}.{suffix}"]
        for index, (model, layer) in enumerate(layers)
        for suffix in IN_A_LAYER
    }
    expected |= {name: (first if "embed" in name else second)[name] for name in OUTSIDE}
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(merged[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("name", "dtype", "layers"),
    [
        ("slerp", "bfloat16", 32),
        ("ties", "float16", 32),
        ("dare_ties", "bfloat16", 32),
        ("linear", "float16", 32),
        ("passthrough", "bfloat16", 40),
    ],
)
def test_transformers_loads_the_result(run: Run, load: Callable[..., Any], name: str, dtype: str, layers: int) -> None:
    import torch
    from transformers import AutoTokenizer

    _, out = run(name)
    stored = {entry["dtype"] for path in Path(out).glob("*.safetensors") for entry in tensors_of(path).values()}
    assert stored == {{"bfloat16": "BF16", "float16": "F16"}[dtype]}
    model = load(Path(out), "AutoModelForCausalLM")
    assert model.dtype == getattr(torch, dtype)
    assert model.config.num_hidden_layers == len(model.model.layers) == layers
    tokens = AutoTokenizer.from_pretrained(out)("w3 w4 w5", return_tensors="pt")
    with torch.no_grad():
        written = model.generate(tokens["input_ids"], max_new_tokens=3, do_sample=False)
        assert torch.isfinite(model(tokens["input_ids"]).logits).all()
    assert written.shape[1] > tokens["input_ids"].shape[1]


def tensors_of(path: Path) -> dict[str, Any]:
    header = read_header(path)
    header.pop("__metadata__", None)
    return header
