"""Models stored in two ways, as transformers writes them, merged and loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import read_tensors, write_weights
from tiny_models import FAMILIES, Family, run_tiny, write_tiny
from vocabularies import bpe, token_ids

import raymerge
from raymerge.output.verify import verify


def half(base: Path, other: Path, out: Path) -> dict[str, np.ndarray]:
    models = [{"model": str(each), "parameters": {"weight": 0.5}} for each in (base, other)]
    recipe = {"merge_method": "linear", "base_model": str(base), "models": models}
    raymerge.merge(recipe, out, executor="inline")
    report = verify(str(out), load=True)
    assert report.ok, report.problems
    return read_tensors(out)


def assert_mean(merged: dict[str, np.ndarray], first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert merged.keys() == first.keys() == second.keys()
    for name, array in merged.items():
        np.testing.assert_allclose(array, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_text_model_merges_into_a_multimodal_one(load: Callable[..., Any], tmp_path: Path) -> None:
    family = FAMILIES["gemma3 multimodal"]
    base = write_tiny(tmp_path / "base", family, seed=0)
    settings = dict(family.sections["text_config"])
    text = write_tiny(
        tmp_path / "a", Family(auto="AutoModelForCausalLM", model_type="gemma3_text", settings=settings), seed=1
    )
    merged, before, own = half(base, text, tmp_path / "out"), read_tensors(base), read_tensors(text)
    wanted = before | {f"language_model.{name}": (before[f"language_model.{name}"] + own[name]) / 2 for name in own}
    assert merged.keys() == before.keys()
    for name, array in merged.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-6, atol=1e-7, err_msg=name)
    run_tiny(load(tmp_path / "out", family.auto), family)


def test_a_text_model_of_another_vocabulary_merges_into_a_multimodal_one(tmp_path: Path) -> None:
    family = FAMILIES["gemma3 multimodal"]
    settings = dict(family.sections["text_config"])
    sections = {**family.sections, "text_config": {**settings, "vocab_size": 320}}
    image = {"image_token_index": 310, "boi_token_index": 311, "eoi_token_index": 312}
    base = write_tiny(
        tmp_path / "base", replace(family, settings={**family.settings, **image}, sections=sections), seed=0
    )
    of_text = Family(auto="AutoModelForCausalLM", model_type="gemma3_text", settings={**settings, "vocab_size": 300})
    text = write_tiny(tmp_path / "a", of_text, seed=1)
    tokens = []
    for folder, count, seed in ((base, 310, 1), (text, 300, 2)):
        tokenizer = bpe(count, seed=seed)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        tokens.append(token_ids(tokenizer))
    models = [{"model": str(each), "parameters": {"weight": 0.5}} for each in (base, text)]
    recipe = {"merge_method": "linear", "base_model": str(base), "models": models, "tokenizer_source": "base"}
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    report = verify(str(tmp_path / "out"), load=True)
    assert report.ok, report.problems
    name = "language_model.model.embed_tokens.weight"
    merged, before, own = (read_tensors(folder) for folder in (tmp_path / "out", base, text))
    assert merged[name].shape == before[name].shape == (320, 32)
    shared = tokens[0].keys() & tokens[1].keys()
    assert len(shared) > 256
    for token, place in tokens[0].items():
        first = before[name][place]
        wanted = (first + own["model.embed_tokens.weight"][tokens[1][token]]) / 2 if token in shared else first
        np.testing.assert_allclose(merged[name][place], wanted, rtol=1e-6, atol=1e-7, err_msg=token)


def test_experts_saved_in_one_tensor_merge_with_experts_saved_apart(load: Callable[..., Any], tmp_path: Path) -> None:
    family = FAMILIES["qwen3 moe"]
    apart, same, twin = (
        write_tiny(tmp_path / name, family, seed=seed, save_original_format=original)
        for name, seed, original in (("apart", 0, True), ("same", 1, True), ("twin", 1, False))
    )
    assert read_tensors(twin).keys() != read_tensors(same).keys(), "the twin should be fused"
    merged = half(apart, twin, tmp_path / "out")
    assert_mean(merged, read_tensors(apart), read_tensors(same))
    model = load(tmp_path / "out", family.auto)
    run_tiny(model, family)
    half(twin, apart, tmp_path / "fused")
    turned = load(tmp_path / "fused", family.auto)
    for name, values in model.state_dict().items():
        np.testing.assert_allclose(turned.state_dict()[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_fused_phi_merges_with_its_twin_in_parts(tmp_path: Path) -> None:
    """The parts are cut as the model's own code cuts them: query, key and value rows; then gate and up."""
    family = FAMILIES["phi3"]
    fused, other = (write_tiny(tmp_path / name, family, seed=seed) for seed, name in enumerate(("fused", "other")))
    parts = {}
    for folder in (fused, other):
        arrays = parts[folder.name] = {}
        for name, array in read_tensors(folder).items():
            if "qkv_proj" in name:
                pieces = np.split(array, [32, 48])
                arrays |= {name.replace("qkv", each): piece for each, piece in zip("qkv", pieces, strict=True)}
            elif "gate_up_proj" in name:
                pieces = np.split(array, 2)
                names = (name.replace("gate_up", each) for each in ("gate", "up"))
                arrays |= dict(zip(names, pieces, strict=True))
            else:
                arrays[name] = array
    apart = tmp_path / "apart"
    write_weights(apart, parts["other"], "F32")
    (apart / "config.json").write_text((other / "config.json").read_text())
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(each), "parameters": {"weight": 1}} for each in (apart, fused)],
    }
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    assert_mean(read_tensors(tmp_path / "out"), parts["other"], parts["fused"])
    turned = {**recipe, "models": recipe["models"][::-1]}
    raymerge.merge(turned, tmp_path / "fused-out", executor="inline")
    whole = {name: (array + read_tensors(other)[name]) / 2 for name, array in read_tensors(fused).items()}
    merged = read_tensors(tmp_path / "fused-out")
    assert merged.keys() == whole.keys()
    for name, array in merged.items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-6, atol=1e-7, err_msg=name)
