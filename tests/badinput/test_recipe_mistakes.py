"""What is wrong with a recipe is told in full, at once, before any weight is read."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Line by line: a misspelt method, which base has which layers, a model that is nowhere, a model without the weight that
# dare_ties needs, a range past the end, and a type that does not exist.
FIVE = """\
merge_method: dare-ties
base_model: {base}
slices:
  - sources:
      - model: {base}
        layer_range: [0, 2]
      - model: {folder}/nowhere
        layer_range: [0, 2]
        parameters: {{weight: 0.5}}
      - model: {a}
        layer_range: [0, 2]
  - sources:
      - model: {base}
        layer_range: [0, 2]
      - model: {b}
        layer_range: [1, 3]
        parameters: {{weight: 0.5}}
dtype: bfloat17
"""
EXPECTED = {
    1: ("merge_method", "dare-ties", "dare_ties"),
    7: ("nowhere", "not found"),
    10: ("weight of", "/a", "required"),
    15: ("layer_range of", "/b", "[1, 3]", "2 layers"),
    18: ("dtype", "bfloat17", "bfloat16"),
}


@pytest.fixture
def five(models: Any) -> str:
    return FIVE.format(folder=models.folder, base=models.base, a=models.a, b=models.b)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How far into each safetensors file anybody read: every read of a local file goes through preadv."""
    furthest: dict[str, int] = {}
    plain = os.preadv

    def counting(descriptor: int, buffers: Any, offset: int, *rest: int) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        count = plain(descriptor, buffers, offset, *rest)
        if path.endswith(".safetensors"):
            furthest[path] = max(furthest.get(path, 0), offset + count)
        return count

    monkeypatch.setattr(os, "preadv", counting)
    return furthest


def header_end(path: str) -> int:
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_five_mistakes_are_told_together_from_headers_alone(
    refused: Callable[..., str], five: str, reads: dict[str, int]
) -> None:
    text = refused(five, "5 problems, no weights read, nothing written")
    starts = {line: text.index(f" line {line} ") for line in EXPECTED}
    ends = [*sorted(starts.values())[1:], len(text)]
    for (line, start), said in zip(starts.items(), EXPECTED.values(), strict=True):
        block = text[start : min(end for end in ends if end > start)]
        assert all(each in block for each in said), (line, block)
    assert len(reads) >= 3, "the counting reads saw nothing"
    assert {path: end for path, end in reads.items() if end != header_end(path)} == {}


def test_the_counting_reads_do_see_weights(models: Any, run: Callable[..., Any], reads: dict[str, int]) -> None:
    out = models.folder / "out"
    assert run("merge", "-", str(out), "--executor", "inline", input=models.recipe()).code == 0
    inputs = {path: end for path, end in reads.items() if not path.startswith(str(out))}
    assert inputs == {
        str(path): path.stat().st_size for each in (models.a, models.b) for path in each.glob("*.safetensors")
    }


@pytest.mark.parametrize("command", ["plan", "merge"])
def test_five_mistakes_take_less_than_three_seconds(models: Any, five: str, tmp_path: Path, command: str) -> None:
    """Processor time is what the bound is put on, since the cores may be shared; the clock is given room."""
    (tmp_path / "five.yml").write_text(five)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    found = subprocess.run(
        [sys.executable, "-m", "raymerge", command, "five.yml", "out"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == 2, found.stderr
    assert "5 problems" in found.stderr
    assert "Traceback" not in found.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert seconds < 15
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "# nothing\n", "- merge_method: linear\n", "linear\n", "42\n", "null\n"])
def test_what_is_no_mapping_is_no_recipe(run: Callable[..., Any], tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yml").write_text(text)
    result = run("merge", str(tmp_path / "recipe.yml"), str(tmp_path / "out"), "--executor", "inline")
    assert result.code == 2
    assert "recipe.yml cannot run" in result.text
    assert not (tmp_path / "out").exists()


def test_a_yaml_bomb_is_refused_at_once(refused: Callable[..., str]) -> None:
    levels = "".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 30))
    began = time.process_time()
    refused(f"l0: &l0 [lol]\n{levels}merge_method: linear\n", "line")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("value", ["[0, .nan, 1]", "[0, .inf]", "[0, NaN, 1]", "[0, [1, 2]]", "[1, 'x']"])
def test_a_gradient_holds_numbers(refused: Callable[..., str], models: Any, value: str) -> None:
    recipe = f"""\
merge_method: slerp
base_model: {models.a}
models:
  - model: {models.a}
  - model: {models.b}
parameters:
  t:
    - filter: mlp
      value: {value}
    - value: 0.5
dtype: bfloat16
"""
    refused(recipe, "line 9", "parameters.t")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"merge_metod": "linear"}, ("merge_metod", "merge_method")),
        ({"parameters": {"wieght": 1}}, ("wieght", "weight")),
        ({"dtype": "int8"}, ("dtype", "int8")),
        ({"slices": []}, ("slices",)),
        ({"tokenizer_source": "union", "tokenizer": {"source": "base"}}, ("tokenizer_source",)),
        ({"chat_template": "{% for %}"}, ("chat_template",)),
        ({"models": []}, ("models",)),
        ({"models": "all"}, ("models",)),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, ("base_model", "slerp")),
        ({"merge_method": ["linear"]}, ("merge_method",)),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_other_mistakes_name_the_key(
    refused: Callable[..., str], models: Any, change: dict[str, Any], said: tuple[str, ...]
) -> None:
    refused(models.recipe(**change), *said)


def test_v_shows_the_traceback_and_json_the_problems(run: Callable[..., Any], five: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "Traceback" in run("plan", "-", out, "-v", input=five).text
    told = json.loads(run("plan", "-", out, "--json", input=five).text)
    assert told["exit_code"] == 2
    assert sorted(problem["line"] for problem in told["problems"]) == sorted(EXPECTED)
    assert all(problem["message"] for problem in told["problems"])
