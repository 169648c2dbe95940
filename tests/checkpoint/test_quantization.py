from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoints import write_bert, write_llama, write_safetensors

from raymerge.checkpoint.open import open_checkpoint
from raymerge.checkpoint.quantization import quantization_of, quantization_problem


def opened(folder):
    return open_checkpoint(str(folder), revision=None, display="MODEL", cwd="/")


def test_plain_weights_and_integer_buffers_are_not_quantized(tmp_path):
    assert quantization_of(opened(write_llama(tmp_path / "llama"))) is None
    assert quantization_of(opened(write_bert(tmp_path / "bert", position_ids=True))) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "bitsandbytes 4-bit nf4",
        ),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit"),
        ({"whatever": 1}, "an unnamed method"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_config_names_the_quantization(tmp_path, settings, expected, nested):
    keys = {"quantization_config": settings}
    folder = write_llama(tmp_path, layers=1, config={"text_config": keys} if nested else keys)
    problem = quantization_problem(opened(folder))
    assert f"MODEL: is quantized: {expected} (quantization_config in config.json)" in str(problem)
    assert "no exact decoding" in str(problem)


@pytest.mark.parametrize(
    ("name", "code"),
    [("model.layers.0.q.weight", "F8_E4M3"), ("model.layers.0.q.weight", "U8"), ("model.layers.0.q.qweight", "I32"),
     ("model.layers.0.mlp.experts.down_proj_blocks", "U8"), ("q.weight.quant_state.bitsandbytes__nf4", "U8")],
)  # fmt: skip
def test_codes_are_found_without_any_word_in_the_config(tmp_path, name, code):
    write_safetensors(tmp_path / "model.safetensors", {"a": (np.ones(2), "F32"), name: (np.ones((2, 2)), code)})
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert quantization_of(opened(tmp_path)) == f"{code} codes (tensor {name})"
