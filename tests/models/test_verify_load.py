"""`verify --load` names whatever transformers would fill with random values, leave out or stumble over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_tensors, write_llama, write_weights
from tiny_models import FAMILIES, write_tiny
from typer.testing import CliRunner

import raymerge
import raymerge.output.load_check as load_check
from raymerge.cli.app import app
from raymerge.events import Event, Message
from raymerge.output.verify import verify

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = write_tiny(tmp_path_factory.mktemp("load") / "m", FAMILIES[name], seed=0)
        return made[name]

    return make


def changed(model: Path, out: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    shutil.copytree(model, out)
    arrays = read_tensors(model)
    change(arrays)
    write_weights(out, arrays, "F32")
    return out


def problems(out: Path, **options: Any) -> str:
    return "\n".join(str(problem) for problem in verify(str(out), load=True, **options).problems)


DOWN = "model.layers.2.mlp.down_proj.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
DAMAGES: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], Any], str]] = {
    "missing": ("llama", lambda arrays: arrays.pop(DOWN), f"LlamaForCausalLM misses {DOWN}; they would be filled with"),
    "left over": (
        "llama",
        lambda arrays: arrays.update({"model.layers.9.extra.weight": np.ones(3, np.float32)}),
        "LlamaForCausalLM has no place for model.layers.9.extra.weight; they would be left out",
    ),
    "shape": (
        "llama",
        lambda arrays: arrays.update({DOWN: np.ones((32, 47), np.float32)}),
        f"LlamaForCausalLM has other shapes for {DOWN} (found [32, 47], expected [32, 48])",
    ),
    "an expert's shape": (
        "mixtral",
        lambda arrays: arrays.update({EXPERT: np.ones((47, 32), np.float32)}),
        f"the model cannot be built: {EXPERT} has shape [47, 32], others of its kind [48, 32]",
    ),
    "an expert missing": (
        "mixtral", lambda arrays: arrays.pop(EXPERT), f"the model cannot be built: {EXPERT} is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_named(damage: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    family, change, said = DAMAGES[damage]
    out = changed(tiny(family), tmp_path / "out", change)
    assert said in problems(out)
    assert verify(str(out)).ok


def test_layers_that_the_config_does_not_count(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    out = shutil.copytree(tiny("llama"), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    told = problems(out)
    assert "has no place for model.layers.3.input_layernorm.weight" in told
    assert "misses" not in told


def test_the_command_exits_one_and_names_the_tensor(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    out = changed(tiny("llama"), tmp_path / "out", lambda arrays: arrays.pop(DOWN))
    good = RUNNER.invoke(app, ["verify", str(tiny("llama")), "--load", "--json"])
    assert good.exit_code == 0, good.output
    assert "39 tensors fit LlamaForCausalLM of transformers" in " ".join(json.loads(good.stdout)["checked"])
    bad = RUNNER.invoke(app, ["verify", str(out), "--load", "--json"])
    assert bad.exit_code == 1
    assert DOWN in bad.stdout


def test_a_head_that_the_config_ties_may_be_there_or_not(tmp_path: Path) -> None:
    assert problems(write_llama(tmp_path / "tied", tie=True)) == ""
    assert problems(write_llama(tmp_path / "own", tie=False)) == ""


def test_without_transformers_the_extra_is_named(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(load_check, "find_spec", lambda name: None)
    result = RUNNER.invoke(app, ["verify", str(tiny("llama")), "--load"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "--load" in result.stderr
    assert "pip install 'raymerge[verify]'" in result.stderr


CODE = """
from pathlib import Path
from transformers import {base}Config, {base}ForCausalLM
Path({marker!r}).touch()
class MyConfig({base}Config):
    model_type = "mine"
class MyModel({base}ForCausalLM):
    config_class = MyConfig
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Path, Path]]:
    """with_code(model_type): a Llama whose config.json names code; the second path is there once that ran."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(model_type: str) -> tuple[Path, Path]:
        out, marker = write_llama(tmp_path / "out"), tmp_path / "it-ran"
        config = json.loads((out / "config.json").read_text())
        code = {"AutoConfig": "code_of_mine.MyConfig", "AutoModelForCausalLM": "code_of_mine.MyModel"}
        names = ["LlamaForCausalLM" if model_type == "llama" else "MyModel"]
        config |= {"model_type": model_type, "auto_map": code, "architectures": names}
        (out / "config.json").write_text(json.dumps(config))
        (out / "code_of_mine.py").write_text(CODE.format(base="Llama", marker=str(marker)))
        return out, marker

    return make


def test_code_of_a_checkpoint_does_not_run_unasked(with_code: Callable[[str], tuple[Path, Path]]) -> None:
    out, marker = with_code("mine")
    told = problems(out)
    assert "only code that comes with it could build it (model_type 'mine', MyModel)" in told
    assert "--trust-remote-code runs it" in told
    assert not marker.exists()
    assert problems(out, trust_remote_code=True) == ""
    assert marker.exists()


def test_a_known_model_is_built_without_its_own_code(with_code: Callable[[str], tuple[Path, Path]]) -> None:
    out, marker = with_code("llama")
    report = verify(str(out), load=True)
    assert report.ok
    assert any("code named in auto_map of config.json (not run; LlamaForCausalLM" in text for text in report.skipped)
    assert not marker.exists()


def test_a_merge_says_which_code_it_copies_and_runs_none(
    with_code: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    model, marker = with_code("llama")
    events: list[Event] = []
    recipe = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    raymerge.merge(recipe, tmp_path / "merged", executor="inline", on_event=events.append)
    told = [event.text for event in events if isinstance(event, Message)]
    assert f"code of {model} is copied along and not run: code_of_mine.py" in told
    assert (tmp_path / "merged" / "code_of_mine.py").read_bytes() == (model / "code_of_mine.py").read_bytes()
    assert not marker.exists()
