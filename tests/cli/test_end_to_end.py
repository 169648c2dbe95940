"""Whole commands on small checkpoints, in this process where nothing is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from typer.testing import CliRunner

from raymerge.cli.app import app
from raymerge.cli.screens.methods import EXAMPLE_BASE, EXAMPLE_MODELS
from raymerge.methods import all_methods

RUNNER = CliRunner()


def invoke(*arguments: str, input: str | None = None) -> Any:
    return RUNNER.invoke(app, list(arguments), input=input, env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Local stand-ins for the models of the examples: 24 layers, one shape."""
    folder = tmp_path_factory.mktemp("models")
    base = write_llama(folder / "base", layers=24, hidden=16, vocab=32)
    others = {
        name: write_llama(folder / f"m{seed}", layers=24, hidden=16, vocab=32, seed=seed, delta_of=base)
        for seed, name in enumerate(EXAMPLE_MODELS, start=1)
    }
    return {EXAMPLE_BASE: base, **others}


def localized(recipe: str, models: dict[str, Path]) -> str:
    return re.sub(r"Qwen/[\w.-]+", lambda match: str(models[match.group()]), recipe)


@pytest.mark.parametrize("method", list(all_methods()))
def test_the_example_of_every_method_runs(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    recipe = localized(invoke("methods", method, "--example").stdout, models)
    result = invoke("merge", "-", str(tmp_path / "out"), "--executor", "inline", input=recipe)
    assert result.exit_code == 0, result.stderr
    assert "done" in result.stdout
    assert invoke("verify", str(tmp_path / "out")).exit_code == 0


def test_a_merge_says_what_its_plan_warns_of(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = localized(invoke("methods", "linear", "--example").stdout, models) + "keep_dtype: [nothing.like.it]\n"
    options = ("--executor", "inline", "--quiet")
    planned = invoke("plan", "-", input=recipe)
    merged = invoke("merge", "-", str(tmp_path / "out"), *options, input=recipe)
    assert merged.exit_code == 0, merged.stderr
    assert "nothing.like.it" in planned.stdout + planned.stderr
    assert "nothing.like.it" in merged.stdout + merged.stderr


def test_plan_then_merge_then_merge_again(models: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(localized(invoke("methods", "ties", "--example").stdout, models))
    arguments = [str(config), str(tmp_path / "out"), "--out-shard-size", "64KB", "--executor", "inline"]
    planned = invoke("plan", *arguments)
    assert planned.exit_code == 0, planned.stderr
    assert "ties, 3 models, 24 layers" in planned.stdout
    assert "nothing there yet" in planned.stdout
    assert not (tmp_path / "out").exists()
    values = json.loads(invoke("plan", *arguments, "--json").stdout)

    events = [json.loads(line) for line in invoke("merge", *arguments, "--json").stdout.splitlines()]
    assert events[0]["event"] == "run_started"
    assert events[0]["plan_digest"] == values["digest"]
    assert sum(event["event"] == "task_finished" for event in events) == len(values["shards"]) > 1

    assert "complete, nothing to do" in invoke("plan", *arguments).stdout
    again = invoke("merge", *arguments)
    assert again.exit_code == 0
    assert f"{len(values['shards'])} kept from an earlier run" in again.stdout


def test_mistakes_are_listed_together_and_nothing_is_made(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = f"""\
merge_method: dare-ties
base_model: {models[EXAMPLE_BASE]}
models:
  - model: {tmp_path}/nowhere
    parameters: {{weight: 1}}
  - model: {models[EXAMPLE_MODELS[0]]}
dtype: bfloat17
"""
    result = invoke("merge", "-", str(tmp_path / "out"), "--executor", "inline", input=recipe)
    assert result.exit_code == 2
    assert "the recipe on standard input cannot run" in result.stderr
    assert "dare_ties" in result.stderr
    assert "bfloat17" in result.stderr
    assert "nowhere" in result.stderr
    assert "weight" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_server_is_no_address(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = localized(invoke("methods", "linear", "--example").stdout, models)
    result = invoke("merge", "-", str(tmp_path / "out"), "--address", "http://head:8265", input=recipe)
    assert result.exit_code == 2, result.output
    assert "submi" in result.stderr


def test_ctrl_c_stops_within_seconds_and_the_same_command_continues(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", layers=24, hidden=256, vocab=512)
    other = write_llama(tmp_path / "other", layers=24, hidden=256, vocab=512, delta_of=base)
    (tmp_path / "config.yaml").write_text(
        f"merge_method: linear\nmodels:\n  - {{model: {base}, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {other}, parameters: {{weight: 1}}}}\n"
    )
    command = [
        sys.executable, "-m", "raymerge", "merge", "config.yaml", "out", "--executor", "inline", "--json",
        "--out-shard-size", "200KB", "--task-cpus", "1",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        next(line for line in lines if "task_finished" in line)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        rest = list(lines)
        assert process.wait(timeout=20) == 130, rest
    assert time.monotonic() - began < 10
    assert "the same command resumes" in json.loads(rest[-1])["message"]
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert finished
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, timeout=100)
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()
    assert invoke("verify", str(tmp_path / "out")).exit_code == 0
