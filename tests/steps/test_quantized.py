"""Quantized inputs are merged as the values that their own libraries decode, bit for bit, and never as codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import read_tensors, write_llama
from safetensors.torch import load_file, save_file

import raymerge
from raymerge.errors import PlanError

SHAPE: dict[str, Any] = {"layers": 2, "hidden": 96, "heads": 4, "vocab": 160, "intermediate": 200}
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
     0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)  # fmt: skip

Tensors = dict[str, torch.Tensor]
Made = tuple[Tensors, torch.Tensor]  # what is stored beside a weight's name, by what is added to it; and its values


def block_float8(weight: torch.Tensor) -> Made:
    """Blocks of 16 rows and 40 columns, which cut the edges; as kernel.py of DeepSeek-V3's inference code."""
    codes, scales = (
        (weight * 900).to(torch.float8_e4m3fn),
        noise((-(-weight.shape[0] // 16), -(-weight.shape[1] // 40))),
    )
    spread = scales.repeat_interleave(16, 0)[: weight.shape[0]].repeat_interleave(40, 1)[:, : weight.shape[1]]
    return {"": codes, "_scale_inv": scales}, (codes.float() * spread).bfloat16()


def one_scale(weight: torch.Tensor) -> Made:
    codes, scale = (weight * 900).to(torch.float8_e4m3fn), torch.tensor([0.0123])
    return {"": codes, "_scale": scale, "|input_scale": torch.tensor([0.5])}, codes.float() * scale


def scale_by_row(weight: torch.Tensor) -> Made:
    codes, scales = (weight * 900).to(torch.float8_e5m2), noise((weight.shape[0], 1)).bfloat16()
    return {"": codes, "_scale": scales}, codes.to(torch.bfloat16) * scales


def compressed_blocks(weight: torch.Tensor) -> Made:
    stored, _ = block_float8(weight)
    spread = stored["_scale_inv"].repeat_interleave(16, 0)[: weight.shape[0]]
    spread = spread.repeat_interleave(40, 1)[:, : weight.shape[1]]
    return {"": stored[""], "_scale": stored["_scale_inv"]}, stored[""].float() * spread


def four_bit(weight: torch.Tensor, *, nested: bool, dtype: torch.dtype = torch.bfloat16) -> Made:
    """As dequantize_4bit of bitsandbytes, by its published formula."""
    count, block = weight.numel(), 64
    packed = torch.randint(0, 256, (-(-count // 2), 1), dtype=torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[:count].long()
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": block,
        "dtype": str(dtype)[6:],
        "shape": list(weight.shape),
    }
    blocks = -(-count // block)
    stored = {"": packed, ".quant_map": NF4.clone(), ".absmax": noise((blocks,))}
    absmax = stored[".absmax"]
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.031}
        stored |= {".absmax": torch.randint(0, 256, (blocks,), dtype=torch.uint8)}
        stored |= {".nested_quant_map": noise((256,)), ".nested_absmax": noise((-(-blocks // 256),))}
        inner = stored[".nested_absmax"].repeat_interleave(256)[:blocks]
        absmax = stored[".nested_quant_map"][stored[".absmax"].long()] * inner + torch.tensor(0.031)
    text = json.dumps(state).encode()
    stored[".quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return stored, (NF4[codes] * absmax.repeat_interleave(block)[:count]).to(dtype).reshape(weight.shape)


def stored_as_bfloat16(made: Made) -> Made:
    """The same bytes under another type, as quant_storage asks for: what shards parameters takes no integers."""
    stored, values = made
    return {**stored, "": stored[""].flatten().view(torch.bfloat16).reshape(-1, 1)}, values


def noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape) * 0.02 + 0.001


BLOCK_GROUPS = {"group_0": {"weights": {"type": "float", "strategy": "block", "block_structure": [16, 40]}}}
FLOAT_GROUPS = {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "targets": ["Linear"]}}
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}
KINDS: dict[str, tuple[Mapping[str, Any], Callable[[torch.Tensor], Made]]] = {
    "block float8": ({"quant_method": "fp8", "weight_block_size": [16, 40]}, block_float8),
    "float8, one scale": ({"quant_method": "compressed-tensors", "config_groups": FLOAT_GROUPS}, one_scale),
    "float8, a scale by row": ({"quant_method": "compressed-tensors", "config_groups": FLOAT_GROUPS}, scale_by_row),
    "float8, compressed blocks": (
        {"quant_method": "compressed-tensors", "config_groups": BLOCK_GROUPS},
        compressed_blocks,
    ),
    "nf4": (BITSANDBYTES, lambda weight: four_bit(weight, nested=False)),
    "nf4, stored as bfloat16": (BITSANDBYTES, lambda weight: stored_as_bfloat16(four_bit(weight, nested=False))),
    "nf4, nested": (BITSANDBYTES, lambda weight: four_bit(weight, nested=True)),
}


def quantize(plain: Path, folder: Path, settings: Mapping[str, Any], make: Callable[[torch.Tensor], Made]) -> Tensors:
    """Write `plain` with its projections quantized; returns the values of every tensor."""
    torch.manual_seed(0)
    folder.mkdir()
    stored: Tensors = {}
    values: Tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = values[name] = tensor
            continue
        made, values[name] = make(tensor.float())
        stored |= {
            f"{name.removesuffix('.weight')}.{end[1:]}" if end.startswith("|") else name + end: each
            for end, each in made.items()
        }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return values


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("plain") / "model", **SHAPE)


def recipe(*models: Path | str, method: str = "linear", **settings: Any) -> dict[str, Any]:
    own = {} if method == "passthrough" else {"parameters": {"weight": 0.5}}
    return {"merge_method": method, "models": [{"model": str(model), **own} for model in models], **settings}


def merged(out: Path, *models: Path | str, **settings: Any) -> Tensors:
    raymerge.merge(recipe(*models, **settings), out, executor="inline")
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_are_those_of_the_library(plain: Path, tmp_path: Path, kind: str) -> None:
    values = quantize(plain, tmp_path / "coded", *KINDS[kind])
    found = merged(tmp_path / "out", tmp_path / "coded", method="passthrough", dtype="float32")
    assert set(found) == set(values)
    for name, tensor in values.items():
        assert torch.equal(found[name].view(torch.int32), tensor.float().view(torch.int32)), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_a_plain_model(plain: Path, tmp_path: Path, kind: str) -> None:
    quantize(plain, tmp_path / "coded", *KINDS[kind])
    planned = raymerge.plan(recipe(tmp_path / "coded", plain))
    assert "quantization_config" not in planned.output_config
    assert {job.output.dtype.value for shard in planned.shards for job in shard.jobs} == {"BF16"}
    fates = {name: line for line in planned.ledger if line.model.endswith("coded") for name in line.tensors}
    stored = load_file(tmp_path / "coded" / "model.safetensors")
    assert set(stored) <= set(fates)
    for name in set(stored) - set(load_file(plain / "model.safetensors")):
        is_of_activations = name.endswith("input_scale")
        assert fates[name].fate == ("dropped" if is_of_activations else "merged")
        assert fates[name].rule.startswith("scale of quantized activations" if is_of_activations else "used to decode")


def test_codes_and_values_merge(plain: Path, tmp_path: Path) -> None:
    values = quantize(plain, tmp_path / "coded", *KINDS["block float8"])
    found = merged(tmp_path / "out", tmp_path / "coded", plain, dtype="float32")
    for name, tensor in load_file(plain / "model.safetensors").items():
        expected = 0.5 * values[name].double() + 0.5 * tensor.double()
        assert torch.equal(found[name], expected.float()), name


@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_whatever_the_blocks_and_windows(
    plain: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymerge.merging import schedule, shard

    quantize(plain, tmp_path / "coded", *KINDS[kind])
    expected = merged(tmp_path / "whole", tmp_path / "coded", plain)
    monkeypatch.setattr(shard, "BLOCK_ELEMENTS", 4096)
    monkeypatch.setattr(schedule, "is_held", lambda job, room: False)
    monkeypatch.setattr(shard, "window_elements", lambda job, room, rows: 8192)
    found = merged(tmp_path / "streamed", tmp_path / "coded", plain)
    assert all(torch.equal(found[name].view(torch.int16), expected[name].view(torch.int16)) for name in expected)


def test_an_odd_number_of_codes_and_odd_places(tmp_path: Path) -> None:
    """Parts that begin in the middle of a byte, and a last half byte without a partner."""
    from raymerge.checkpoint.decoded import decoded
    from raymerge.checkpoint.open import open_checkpoint
    from raymerge.merging.input_steps import open_steps

    torch.manual_seed(1)
    stored, values = four_bit(torch.zeros(9, 15), nested=True)
    save_file({f"a.weight{end}": each for end, each in stored.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": BITSANDBYTES}))
    ref = decoded(open_checkpoint(str(tmp_path), revision=None, display="M", cwd="/")).tensors["a.weight"]
    assert ref.spec.shape == (9, 15)
    (steps,) = open_steps([ref])
    assert steps is not None
    flat = values.float().flatten().numpy()
    packed = stored[""].numpy().ravel()
    for window, start, end in [(0, 0, 135), (0, 3, 4), (7, 7, 135), (7, 8, 11), (64, 127, 135)]:
        raw = packed[window // 2 :]
        assert np.array_equal(steps.values(raw, (window, len(flat)), start, end), flat[start:end])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_against_bitsandbytes_itself(tmp_path: Path, kind: str, nested: bool) -> None:
    """With rows of whole blocks: its AVX-512 kernel (0.50) misplaces the absmax of blocks that cross rows."""
    functional = pytest.importorskip("bitsandbytes.functional")
    plain = write_llama(tmp_path / "plain", **{**SHAPE, "hidden": 128, "intermediate": 192})

    def make(weight: torch.Tensor) -> Made:
        packed, state = functional.quantize_4bit(weight.half(), quant_type=kind, compress_statistics=nested)
        stored = {f".{name}": each.clone() for name, each in state.as_dict(packed=True).items()}
        return {"": packed, **stored}, functional.dequantize_4bit(packed, state)

    values = quantize(plain, tmp_path / "coded", BITSANDBYTES, make)
    found = merged(tmp_path / "out", tmp_path / "coded", method="passthrough", dtype="float32")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in values.items())


def write_experts(folder: Path, *, experts: int = 3, outputs: int = 10, groups: int = 2) -> Tensors:
    torch.manual_seed(2)
    blocks = torch.randint(0, 256, (experts, outputs, groups, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (experts, outputs, groups), dtype=torch.uint8)
    scales[0, 0] = torch.tensor([0, 250])
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored = {
        f"{name}_blocks": blocks,
        f"{name}_scales": scales,
        f"{name}_bias": torch.ones(experts, outputs).bfloat16(),
    }
    folder.mkdir(exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "quantization_config": settings}))
    return stored


def test_mxfp4_against_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
    stored = write_experts(tmp_path / "coded")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    expected = convert(stored[f"{name}_blocks"], stored[f"{name}_scales"])
    found = merged(tmp_path / "out", tmp_path / "coded", method="passthrough")
    assert set(found) == {name, f"{name}_bias"}
    assert torch.equal(found[name].view(torch.int16), expected.view(torch.int16))

    from raymerge.merging import schedule, shard

    monkeypatch.setattr(shard, "BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(schedule, "is_held", lambda job, room: False)
    monkeypatch.setattr(shard, "window_elements", lambda job, room, rows: 300)  # windows cut experts and rows
    streamed = merged(tmp_path / "streamed", tmp_path / "coded", method="passthrough")
    assert torch.equal(streamed[name].view(torch.int16), expected.view(torch.int16))


def test_an_adapter_on_a_quantized_base(plain: Path, tmp_path: Path) -> None:
    values = quantize(plain, tmp_path / "coded", *KINDS["nf4, nested"])
    target = "model.layers.1.mlp.down_proj"
    down, up = torch.randn(3, 200), torch.randn(96, 3)
    folder = tmp_path / "lora"
    folder.mkdir()
    save_file(
        {f"base_model.model.{target}.lora_A.weight": down, f"base_model.model.{target}.lora_B.weight": up},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    found = merged(tmp_path / "out", f"{tmp_path / 'coded'}+{folder}", method="passthrough", dtype="float32")
    expected = values[f"{target}.weight"].double() + 2 * (up.double() @ down.double())
    assert (found[f"{target}.weight"] - expected).abs().max() <= 1e-6 * expected.abs().max()


def first_weight(stored: Tensors) -> str:
    return next(name for name in stored if name.endswith("_proj.weight"))


def short_scales(stored: Tensors) -> None:
    name = f"{first_weight(stored)}_scale_inv"
    stored[name] = stored[name][:-1].clone()


def no_scales(stored: Tensors) -> None:
    del stored[f"{first_weight(stored)}_scale_inv"]


def coded_scales(stored: Tensors) -> None:
    name = f"{first_weight(stored)}_scale_inv"
    stored[name] = stored[name].to(torch.uint8)


def short_absmax(stored: Tensors) -> None:
    name = f"{first_weight(stored)}.absmax"
    stored[name] = stored[name][:-1].clone()


def no_map(stored: Tensors) -> None:
    del stored[f"{first_weight(stored)}.quant_map"]


def damaged_state(stored: Tensors) -> None:
    stored[f"{first_weight(stored)}.quant_state.bitsandbytes__nf4"] = torch.tensor([123, 34], dtype=torch.uint8)


def other_shape(stored: Tensors) -> None:
    text = json.dumps({"blocksize": 64, "dtype": "bfloat16", "shape": [7, 7], "quant_type": "nf4"}).encode()
    name = f"{first_weight(stored)}.quant_state.bitsandbytes__nf4"
    stored[name] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def packed_integers(stored: Tensors) -> None:
    stored[f"{first_weight(stored)}_packed"] = torch.zeros(4, 4, dtype=torch.int32)


DAMAGES: dict[str, tuple[str, Callable[[Tensors], None], str]] = {
    "scales too few": ("block float8", short_scales, r"_scale_inv: has shape .* expected \(1, 1\) or "),
    "no scales": ("block float8", no_scales, "holds F8_E4M3 codes and has no .*_scale_inv"),
    "scales that are codes": ("block float8", coded_scales, "holds U8 scales, expected F32"),
    "absmax too short": ("nf4", short_absmax, r"absmax: has \d+ elements of type F32.* expected \d+ of F32"),
    "no map": ("nf4", no_map, r"has no .*\.quant_map"),
    "a state that is none": ("nf4", damaged_state, "is not valid JSON"),
    "a state of another shape": ("nf4", other_shape, r"its state says \(7, 7\)"),
    "another format": ("float8, one scale", packed_integers, "weight_packed: is of a format of compressed-tensors"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_parts_that_do_not_fit_are_named_before_anything_runs(plain: Path, tmp_path: Path, case: str) -> None:
    kind, damage, expected = DAMAGES[case]
    quantize(plain, tmp_path / "coded", *KINDS[kind])
    path = tmp_path / "coded" / "model.safetensors"
    stored = load_file(path)
    damage(stored)
    save_file(stored, path)
    with pytest.raises(PlanError, match=expected):
        raymerge.plan(recipe(tmp_path / "coded"))


@pytest.mark.parametrize("end", ["_blocks", "_scales"])
def test_experts_that_do_not_fit(tmp_path: Path, end: str) -> None:
    stored = write_experts(tmp_path)
    name = f"model.layers.0.mlp.experts.gate_up_proj{end}"
    save_file({**stored, name: stored[name][:, :-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(PlanError, match="expected U8"):
        raymerge.plan(recipe(tmp_path))


NOT_DECODED = [
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "fbgemm_fp8"},
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
]


@pytest.mark.parametrize("settings", NOT_DECODED)
def test_what_has_no_exact_decoding_is_refused_by_name(plain: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    def make(weight: torch.Tensor) -> Made:
        return {"": weight.to(torch.int8)}, weight

    quantize(plain, tmp_path / "coded", settings, make)
    with pytest.raises(PlanError, match=f"is quantized: {settings['quant_method']}.*I8 codes"):
        raymerge.plan(recipe(tmp_path / "coded"))


def test_a_model_left_whole_by_its_quantizer_is_read_as_it_is(plain: Path, tmp_path: Path) -> None:
    """A config may speak of a quantization that no weight shows."""
    quantize(plain, tmp_path / "coded", {"quant_method": "fp8"}, lambda weight: ({"": weight}, weight))
    found = merged(tmp_path / "out", tmp_path / "coded", method="passthrough")
    assert read_tensors(tmp_path / "out").keys() == found.keys()
