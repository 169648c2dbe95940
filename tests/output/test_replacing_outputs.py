"""What a folder held before does not stay beside the model that replaces it, where loaders would mix the two."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama

import raymerge
from raymerge.errors import PlanError


def merge(*models: Path, out: Path, **options: Any) -> None:
    sources = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    raymerge.merge({"merge_method": "linear", "models": sources}, out, executor="inline", task_cpus=1, **options)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return write_llama(tmp_path / "a", layers=1), write_llama(tmp_path / "b", layers=1, seed=1)


@pytest.mark.parametrize(
    ("shard_size", "stray"),
    [("10K", "model.safetensors"), ("10K", "pytorch_model.bin"), ("1B", "model.safetensors.index.json")],
)
def test_weights_beside_the_same_merge_are_refused_and_go_with_overwrite(
    models: tuple[Path, Path], tmp_path: Path, shard_size: str, stray: str
) -> None:
    out = tmp_path / "out"
    merge(*models, out=out, out_shard_size=shard_size)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("model-*")}
    (out / stray).write_bytes(b"{}")
    with pytest.raises(PlanError, match=stray):
        merge(*models, out=out, out_shard_size=shard_size)
    merge(*models, out=out, out_shard_size=shard_size, overwrite=True)
    assert not (out / stray).exists()
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("model-*")} == before


def test_no_tokenizer_file_of_a_replaced_merge_stays(models: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = models
    (first / "chat_template.jinja").write_text("{{ messages }}")
    (first / "tokenizer.model").write_bytes(b"pieces")
    out = tmp_path / "out"
    merge(first, out=out)
    assert (out / "chat_template.jinja").exists()
    (out / "notes.txt").write_text("mine")
    merge(second, out=out, overwrite=True)
    fresh = tmp_path / "fresh"
    merge(second, out=fresh)
    assert {path.name for path in out.iterdir()} == {path.name for path in fresh.iterdir()} | {"notes.txt"}


def test_small_files_that_somebody_put_into_an_empty_folder_stay(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "chat_template.jinja").write_text("{{ messages }}")
    merge(*models, out=out, copy_tokenizer=False)
    merge(*models, out=out, copy_tokenizer=False)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_chat_template_that_the_recipe_no_longer_sets_goes(models: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = {"merge_method": "passthrough", "models": [{"model": str(models[0])}]}
    out = tmp_path / "out"
    raymerge.merge({**recipe, "chat_template": "chatml"}, out, executor="inline")
    made = (out / "model.safetensors").stat().st_mtime_ns
    assert (out / "chat_template.jinja").exists()
    raymerge.merge(recipe, out, executor="inline")
    assert not (out / "chat_template.jinja").exists()
    assert (out / "model.safetensors").stat().st_mtime_ns == made
