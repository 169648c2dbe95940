"""The makers of test checkpoints: what they write is what the reference libraries read."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import from_bfloat16, read_tensors, to_bfloat16, write_bert, write_deepseek, write_llama
from safetensors.numpy import load_file


def test_shards_hold_what_one_file_holds_and_the_library_agrees(tmp_path):
    one = write_llama(tmp_path / "one", dtype="float32", layers=2)
    many = write_llama(tmp_path / "many", dtype="float32", layers=2, shard_bytes=20_000)
    assert len(list(many.glob("*.safetensors"))) > 2
    tensors, expected = read_tensors(many), load_file(one / "model.safetensors")
    assert list(tensors) == list(read_tensors(one))
    assert set(tensors) == set(expected)
    assert all(np.array_equal(tensors[name], expected[name]) for name in tensors)


def test_bfloat16_rounds_to_nearest_even():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(4096, dtype=np.float32)
    values[:3] = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)]  # half-way
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), expected)


def test_a_fine_tune_lies_near_its_base(tmp_path):
    base = write_llama(tmp_path / "base")
    tuned = write_llama(tmp_path / "tuned", seed=1, delta_of=base, delta_scale=0.001)
    before, after = read_tensors(base), read_tensors(tuned)
    largest = {name: np.abs(after[name] - before[name]).max() for name in before}
    assert all(delta < 0.02 for delta in largest.values())
    assert all(largest[name] > 0 for name in before if before[name].ndim == 2)


def test_transformers_loads_the_llama_and_its_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write_llama(tmp_path / "m", layers=2, kv_heads=2, shard_bytes=20_000)
    _, loading = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w5 w9 nothing")["input_ids"] == [5, 9, 0]
    assert len(tokenizer) == 64


@pytest.mark.parametrize("write", [write_deepseek, write_bert])
def test_transformers_knows_every_tensor_of_the_other_shapes(tmp_path, write):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "m")
    auto = transformers.AutoModelForCausalLM if write is write_deepseek else transformers.AutoModel
    _, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert all(".layers.3." in key for key in loading["unexpected_keys"])  # the next-n layer
