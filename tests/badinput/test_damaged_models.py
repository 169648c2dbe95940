"""Damaged weight files and indexes are refused from their headers, naming the file and the tensor."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_arrays, read_header, read_tensors, write_llama, write_safetensors, write_weights

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"

Damage = Callable[[Path], None]


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any], *, text: Callable[[str], str] = str) -> None:
    """Change a weight file's header and leave its data; `text` changes the header's JSON text."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    change(header)
    encoded = text(json.dumps(header)).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[start:])


def entry(name: str, **values: Any) -> Damage:
    return lambda file: rewrite(file, lambda header: header[name].update(values))


def overlap(file: Path) -> None:
    """The tensor UP takes the bytes of the one before it."""

    def change(header: dict[str, Any]) -> None:
        ordered = sorted((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        before = header[ordered[ordered.index(UP) - 1]]
        header[UP]["data_offsets"] = before["data_offsets"]

    rewrite(file, change)


def hole(file: Path) -> None:
    rewrite(file, lambda header: header.pop(UP))


def twice(file: Path) -> None:
    def repeat(text: str) -> str:
        found = re.search(rf'"{re.escape(NORM)}": \{{.*?\}}, ', text)
        assert found is not None
        return text.replace(found[0], found[0] * 2)

    rewrite(file, lambda header: None, text=repeat)


def cut(nbytes: int) -> Damage:
    """Keep the first bytes, or with a negative number all but the last."""
    return lambda file: file.write_bytes(file.read_bytes()[:nbytes])


def claim(length: int) -> Damage:
    return lambda file: file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])


def replace(content: bytes) -> Damage:
    return lambda file: file.write_bytes(content)


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "empty": (cut(0), ("0 bytes",)),
    "cut in its length": (cut(5), ("5 bytes",)),
    "cut in its header": (cut(300), ("300 in all",)),
    "cut in its data": (cut(-100), ("'lm_head.weight'", "truncated")),
    "longer than its header says": (grow, ("4 bytes after its last tensor",)),
    "header length over the limit": (claim(10**9), ("claims a header of 1000000000 bytes",)),
    "header length of 2^64 - 1": (claim(2**64 - 1), ("claims a header of 18446744073709551615 bytes",)),
    "header length past the end": (claim(60_000), ("claims a header of 60000 bytes",)),
    "no safetensors": (replace(b"\x80\x04K\x01." * 40), ("a.safetensors",)),
    "a pointer of git lfs": (
        replace(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ("a.safetensors", "git lfs pull"),
    ),
    "overlapping tensors": (overlap, (UP, "overlaps")),
    "unused bytes": (hole, ("unused bytes",)),
    "a name twice": (twice, (f"'{NORM}' twice",)),
    "an unknown dtype": (entry(UP, dtype="F12"), (UP, "'F12'")),
    "a shape of other size": (entry(UP, shape=[3, 3]), (UP, "not BF16 of shape")),
    "a negative shape": (entry(UP, shape=[-64, -32]), (UP, "shape [-64, -32]")),
    "offsets past the end": (entry(NORM, data_offsets=[0, 10**12]), (NORM,)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(refused: Callable[..., str], models: Any, damage: str) -> None:
    make, said = DAMAGES[damage]
    make(models.a / "model.safetensors")
    refused(models.recipe(), f"{models.a}/model.safetensors", *(text.replace("a.safe", "model.safe") for text in said))


def index_of(models: Any) -> dict[str, Any]:
    return json.loads((models.b / INDEX).read_text())


def write_index(models: Any, index: Any) -> None:
    (models.b / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))


@pytest.mark.parametrize("place", ["../a/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
def test_an_index_names_files_of_its_own_folder(refused: Callable[..., str], models: Any, place: str) -> None:
    index = index_of(models)
    index["weight_map"][UP] = place
    write_index(models, index)
    refused(models.recipe(), str(models.b), INDEX, repr(place))


def test_an_index_that_names_a_missing_file(refused: Callable[..., str], models: Any) -> None:
    gone = index_of(models)["weight_map"][UP]
    (models.b / gone).unlink()
    refused(models.recipe(), f"{models.b}/{INDEX}", gone)


def test_an_index_that_names_a_missing_tensor(refused: Callable[..., str], models: Any) -> None:
    index = index_of(models)
    index["weight_map"]["model.layers.7.mlp.up_proj.weight"] = index["weight_map"][UP]
    write_index(models, index)
    refused(models.recipe(), f"{models.b}/{INDEX}", "model.layers.7.mlp.up_proj.weight", index["weight_map"][UP])


def test_an_index_that_puts_a_tensor_into_the_wrong_file(refused: Callable[..., str], models: Any) -> None:
    index = index_of(models)
    right = index["weight_map"][UP]
    wrong = next(file for file in index["weight_map"].values() if file != right)
    index["weight_map"][UP] = wrong
    write_index(models, index)
    refused(models.recipe(), f"{models.b}/{INDEX}", UP, right, wrong)


def test_a_tensor_in_two_files(refused: Callable[..., str], models: Any) -> None:
    index = index_of(models)
    file = next(file for file in index["weight_map"].values() if file != index["weight_map"][NORM])
    tensors = read_tensors(models.b)
    kept = {name: (tensors[name], "BF16") for name, place in index["weight_map"].items() if place == file}
    write_safetensors(models.b / file, {**kept, NORM: (tensors[NORM], "BF16")})
    refused(models.recipe(), str(models.b), NORM, file, index["weight_map"][NORM])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{", "\udcff"])
def test_an_index_that_is_none(refused: Callable[..., str], models: Any, text: str) -> None:
    (models.b / INDEX).write_text(text, errors="surrogateescape")
    refused(models.recipe(), f"{models.b}/{INDEX}")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"num_hidden_layers": }', "null"])
def test_a_config_that_is_none(refused: Callable[..., str], models: Any, text: str) -> None:
    (models.a / "config.json").write_text(text)
    refused(models.recipe(), f"{models.a}/config.json")


def test_shards_without_an_index_must_be_complete(refused: Callable[..., str], models: Any) -> None:
    (models.b / INDEX).unlink()
    shards = sorted(models.b.glob("*.safetensors"))
    shards[1].unlink()
    refused(models.recipe(), str(models.b), shards[1].name)


def test_weights_without_a_config(refused: Callable[..., str], models: Any) -> None:
    (models.a / "config.json").unlink()
    refused(models.recipe(), str(models.a), "config.json")


def test_a_file_that_is_no_pickle(refused: Callable[..., str], models: Any) -> None:
    (models.a / "model.safetensors").rename(models.a / "pytorch_model.bin")
    refused(models.recipe(), str(models.a), "pytorch_model.bin", "is not a file of torch.save")


def test_a_pickle_that_runs_something(refused: Callable[..., str], models: Any, tmp_path: Path) -> None:
    (models.a / "model.safetensors").unlink()
    (models.a / "pytorch_model.bin").write_bytes(b"\x80\x02cposix\nsystem\nX\x08\x00\x00\x00touch ow\x85R.")
    refused(models.recipe(), str(models.a), "pytorch_model.bin", "names 'posix.system'", "nothing of it was run")


def test_quantized_codes_are_never_merged(refused: Callable[..., str], models: Any) -> None:
    arrays = read_tensors(models.a)
    codes = {name: "F8_E4M3" if "mlp" in name else "BF16" for name in arrays}
    write_weights(models.a, arrays, codes)
    refused(models.recipe(), str(models.a), "F8_E4M3", ".mlp.")


def test_a_tensor_that_one_model_lacks(refused: Callable[..., str], models: Any) -> None:
    arrays = read_tensors(models.a)
    arrays.pop(UP)
    write_weights(models.a, arrays, "BF16")
    refused(models.recipe(), UP, str(models.a), "on_missing")


def test_a_tensor_of_another_shape(refused: Callable[..., str], models: Any) -> None:
    arrays = read_tensors(models.a)
    arrays[UP] = arrays[UP][:-1]
    write_weights(models.a, arrays, "BF16")
    refused(models.recipe(), UP, str(models.a), "(63, 32)", "(64, 32)", "on_mismatch")


def test_another_vocabulary(refused: Callable[..., str], models: Any) -> None:
    write_llama(models.a, layers=2, vocab=70)
    refused(models.recipe(), "model.embed_tokens.weight", "(70, 32)", "(64, 32)", "tokenizer_source: base or union")


@pytest.mark.parametrize("shape", [(0, 32), (0,), (64, 0)])
def test_zero_size_tensors_are_merged_like_others(models: Any, run: Callable[..., Any], shape: tuple[int, ...]) -> None:
    out = models.folder / "out"
    for folder in (models.a, models.b):
        arrays = read_tensors(folder)
        shutil.rmtree(folder)
        arrays["model.empty.weight"] = np.empty(shape, np.float32)
        write_weights(folder, arrays, "BF16")
        shutil.copy(models.base / "config.json", folder)
    for method in ("linear", "slerp", "ties", "dare_ties"):
        names = {"base_model": str(models.a)} if method == "slerp" else {"base_model": str(models.base)}
        shared = {"parameters": {"t": 0.5}} if method == "slerp" else {"on_missing": "skip"}
        recipe = models.recipe(merge_method=method, **(names if method != "linear" else {}), **shared)
        result = run("merge", "-", str(out), "--executor", "inline", "--overwrite", input=recipe)
        assert result.code == 0, result.text
        if method in ("linear", "slerp"):
            assert read_header(out / "model.safetensors")["model.empty.weight"]["shape"] == list(shape)


def test_a_zero_size_tensor_in_one_model_alone(refused: Callable[..., str], models: Any) -> None:
    arrays = read_tensors(models.a)
    arrays[UP] = arrays[UP][:0]
    write_weights(models.a, arrays, "BF16")
    refused(models.recipe(), UP, str(models.a), "(0, 32)")


def test_a_model_of_another_width_cannot_be_stacked(refused: Callable[..., str], models: Any) -> None:
    wide = write_llama(models.folder / "wide", layers=2, hidden=64)
    slices = [{"sources": [{"model": str(model), "layer_range": [0, 2]}]} for model in (models.a, wide)]
    refused(json.dumps({"merge_method": "passthrough", "slices": slices}) + "\n", str(wide), str(models.a))


def test_an_adapter_given_as_a_model(refused: Callable[..., str], models: Any) -> None:
    adapter = models.folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    arrays = random_arrays({"base_model.model.lm_head.lora_A.weight": (4, 32)}, seed=0)
    write_safetensors(adapter / "adapter_model.safetensors", {name: (each, "F32") for name, each in arrays.items()})
    refused(models.recipe(adapter), str(adapter), "is an adapter", f"BASE+{adapter}")
    shutil.copy(models.a / "config.json", adapter)
    refused(models.recipe(adapter), str(adapter), f"BASE+{adapter}")


def test_a_model_that_is_a_file_an_empty_folder_or_nothing(refused: Callable[..., str], models: Any) -> None:
    empty = models.folder / "empty"
    empty.mkdir()
    refused(models.recipe(models.a / "model.safetensors"), "is a file, expected a folder", f"name {models.a} instead")
    refused(models.recipe(empty), f"{empty} is empty")
    refused(models.recipe(models.folder / "nowhere"), "nowhere", "not found")
    refused(models.recipe(models.a / "config.json" / "deeper"), "deeper", "not found")


def test_every_damaged_model_is_told_at_once(refused: Callable[..., str], models: Any) -> None:
    cut(-10)(models.a / "model.safetensors")
    (models.b / INDEX).write_text("{")
    refused(models.recipe(), "2 problems", f"{models.a}/model.safetensors", f"{models.b}/{INDEX}")


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_nan_in_a_weight_fails_by_name_once_it_is_read(models: Any, run: Callable[..., Any], method: str) -> None:
    """No header tells it, so it ends the run: no shard under its final name, no temporary file, no success marker."""
    arrays = read_tensors(models.a)
    arrays[UP][3, 5] = np.inf  # the maker of bfloat16 takes no NaN; infinity minus infinity is one
    write_weights(models.a, arrays, "BF16")
    write_weights(models.folder / "c", arrays, "BF16")
    shutil.copy(models.a / "config.json", models.folder / "c")
    changes = {"base_model": str(models.folder / "c")} if method == "ties" else {}
    out = models.folder / "out"
    result = run("merge", "-", str(out), "--executor", "inline", input=models.recipe(merge_method=method, **changes))
    assert result.code == 1, result.text
    assert UP in result.text
    assert "Traceback" not in result.text
    names = os.listdir(out)
    assert not [name for name in names if name.endswith((".safetensors", ".partial", INDEX))]
    assert json.loads((out / "raymerge.json").read_text())["state"] == "running"
