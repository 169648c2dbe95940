"""The command line as people type it: every option is understood, every failure is a sentence with an exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import raymerge
from raymerge.cli.app import app
from raymerge.cli.compatibility import ACCEPTED
from raymerge.cli.displays import event_name
from raymerge.errors import ExecutionError, PlanError, Problem, StorageError, UsageError
from raymerge.events import RunStarted, TaskFinished

RUNNER = CliRunner()

# Every option of `mergekit-yaml --help`, version 0.1.5, in each of its forms.
FLAGS = [
    "allow-crimes", "unsafe-truncate-embeddings", "trust-remote-code", "quiet", "cuda", "low-cpu-memory",
    "lazy-unpickle", "read-to-gpu", "multi-gpu", "async-write", "copy-tokenizer", "clone-tensors", "write-model-card",
    "safe-serialization",
]  # fmt: skip
MERGEKIT_OPTIONS = [
    *([f"--{name}"] for name in FLAGS),
    *([f"--no-{name}"] for name in FLAGS),
    ["--gpu-rich"], ["-v"], ["-vv"], ["-j", "4"], ["--num-threads", "4"], ["--write-threads", "2"],
    ["--transformers-cache", "cache"], ["--lora-merge-cache", "cache"], ["--lora-merge-dtype", "float16"],
    ["--random-seed", "7"], ["--device", "cuda:0"], ["--out-shard-size", "5B"],
]  # fmt: skip


class Result:
    """What a merge that never ran gives back."""

    nbytes, shard_count, kept_count, retries, seconds = 10**9, 3, 1, 0, 4.2


class Recorder:
    """Stands in for `raymerge.merge`: keeps its arguments, and fails with `failure` if there is one."""

    def __init__(self, failure: BaseException | None = None, *, started: bool = False) -> None:
        self.failure, self.started = failure, started
        self.config: Any = None
        self.out: Any = None
        self.options: dict[str, Any] = {}

    def __call__(self, config: Any, out: Any, **options: Any) -> type[Result]:
        self.config, self.out, self.options = config, out, options
        if self.started:
            options["on_event"](
                RunStarted(plan_digest="a" * 64, out="o", shard_count=3, kept_count=1, read_bytes=8, write_bytes=2)
            )
        if self.failure is not None:
            raise self.failure
        return Result


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setenv("HF_HUB_CACHE", "")  # set first, so that what a command sets is taken back afterwards
    recorder = Recorder()
    monkeypatch.setattr(raymerge, "merge", recorder, raising=False)
    return recorder


def invoke(*arguments: str, input: str | None = None) -> Any:
    return RUNNER.invoke(app, list(arguments), input=input, env={"COLUMNS": "100"})


@pytest.mark.parametrize("option", MERGEKIT_OPTIONS, ids=" ".join)
def test_every_option_of_mergekit_is_accepted(merge: Recorder, option: list[str]) -> None:
    result = invoke("merge", "config.yaml", "out", *option)
    assert result.exit_code == 0, result.output
    assert (merge.config, merge.out) == ("config.yaml", "out")


@pytest.mark.parametrize("accepted", ACCEPTED, ids=lambda accepted: accepted.name)
def test_an_option_without_effect_says_so_in_one_line_and_in_the_help(merge: Recorder, accepted: Any) -> None:
    invoke("merge", "c", "o")
    plain = {**merge.options, "on_event": None}
    value = [] if accepted.kind is bool else ["4"]
    flag = f"--{accepted.name}" if accepted.speaks_when else f"--no-{accepted.name}"
    result = invoke("merge", "c", "o", flag, *value)
    assert [line for line in result.stderr.splitlines() if flag in line and "no effect" in line], result.stderr
    assert {**merge.options, "on_event": None} == plain
    assert f"No effect: {accepted.reason.split()[0]}" in invoke("merge", "--help").output


def test_the_form_that_asks_for_nothing_is_silent(merge: Recorder) -> None:
    result = invoke("merge", "c", "o", "--no-lazy-unpickle", "--safe-serialization")
    assert "no effect" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "config.yaml merge --copy-tokenizer --allow-crimes --out-shard-size 1B --lazy-unpickle",
        "path/to/config.yml path/to/out --allow-crimes --out-shard-size 1B",
    ],
)
def test_commands_of_tutorials_work_unchanged(merge: Recorder, arguments: str) -> None:
    assert invoke("merge", *arguments.split()).exit_code == 0
    assert merge.options["out_shard_size"] == 10**9
    assert merge.options["copy_tokenizer"] is True


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--cuda", "device", "cuda"),
        ("--gpu-rich", "device", "cuda"),
        ("--cuda --device cuda:1", "device", "cuda:1"),
        ("", "device", "cpu"),
        ("", "out_shard_size", 2 * 10**9),
        ("--out-shard-size 8MB", "out_shard_size", 8 * 10**6),
        ("--task-memory 1GiB", "task_memory", 2**30),
        ("--executor inline", "executor", "inline"),
        ("--address 10.0.0.1:6379", "address", "10.0.0.1:6379"),
        ("--task-cpus 2", "task_cpus", 2),
        ("", "task_cpus", None),
        ("-j 4", "task_cpus", 4),
        ("--num-threads 4 --task-cpus 3", "task_cpus", 3),
        ("--task-gpus 0.5", "task_gpus", 0.5),
        ("--max-tasks 40", "max_tasks", 40),
        ("", "prefer_nodes", ("market-type=spot",)),
        ("--prefer-nodes pool=merge --prefer-nodes disk=fast", "prefer_nodes", ("pool=merge", "disk=fast")),
        ("--nan warn", "nan", "warn"),
        ("--overwrite", "overwrite", True),
        ("--keep-inputs", "keep_inputs", True),
        ("--no-copy-tokenizer", "copy_tokenizer", False),
        ("--no-write-model-card", "write_model_card", False),
        ("--random-seed 7", "random_seed", 7),
    ],
)
def test_options_reach_the_api(merge: Recorder, arguments: str, name: str, value: Any) -> None:
    assert invoke("merge", "c", "o", *arguments.split()).exit_code == 0
    assert merge.options[name] == value


def test_a_size_that_is_not_given_is_left_to_the_api(merge: Recorder) -> None:
    assert invoke("merge", "c", "o").exit_code == 0
    assert "task_memory" not in merge.options


def test_the_hub_cache_follows_transformers_cache(merge: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    invoke("merge", "c", "o", "--transformers-cache", "~/models")
    assert os.environ["HF_HUB_CACHE"] == "/home/someone/models"


def test_standard_input_and_home_are_read(merge: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert invoke("merge", "-", "~/out", input="merge_method: linear\n").exit_code == 0
    assert merge.config.startswith("merge_method: linear\n")
    assert merge.out == "/home/someone/out"
    invoke("merge", "~/c.yaml", "s3://bucket/~/out")
    assert (merge.config, merge.out) == ("/home/someone/c.yaml", "s3://bucket/~/out")


def test_empty_standard_input_is_a_usage_error(merge: Recorder) -> None:
    result = invoke("merge", "-", "out", input=" \n")
    assert result.exit_code == 2
    assert "holds no recipe" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "c"],
        ["merge", "c", "o", "--no-such-option"],
        ["merge", "c", "o", "--executor", "dask"],
        ["merge", "c", "o", "--out-shard-size", "1XB"],
        ["merge", "c", "o", "--task-cpus", "0"],
        ["merge", "c", "o", "--max-tasks", "0"],
        ["merge", "c", "o", "--task-gpus", "-1"],
        ["nonsense"],
        ["methods", "dare-ties"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(merge: Recorder, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output + result.stderr


FIVE = (
    Problem(line=9, subject="merge_method", message="found dare-ties. Did you mean dare_ties?"),
    Problem(line=4, subject="models[1]", message="meta-llama/Llama-2-7b-hf is gated", remedy="accept its terms"),
    Problem(subject="merge/", message="holds another merge", remedy="another folder, or --overwrite"),
)


def test_a_plan_error_prints_every_problem_and_exits_2(merge: Recorder) -> None:
    merge.failure = PlanError(*FIVE)
    result = invoke("merge", "config.yaml", "merge")
    lines = result.stderr.splitlines()
    assert result.exit_code == 2
    assert lines[0] == "error: config.yaml cannot run: 3 problems, no weights read, nothing written"
    assert lines[1].split() == ["line", "4", "models[1]", "meta-llama/Llama-2-7b-hf", "is", "gated"]
    assert "-> accept its terms" in lines[2]
    assert lines[3].split() == ["line", "9", "merge_method", "found", "dare-ties.", "Did", "you", "mean", "dare_ties?"]
    assert lines[4].split() == ["merge/", "holds", "another", "merge"]
    assert result.stdout == ""


def test_a_failed_run_says_what_stays(merge: Recorder) -> None:
    merge.failure, merge.started = ExecutionError("shard 3 could not be written"), True
    result = invoke("merge", "config.yaml", "merge")
    assert result.exit_code == 1
    assert "finished shards stay, the same command continues" in result.stderr


def test_markup_in_a_message_is_not_read(merge: Recorder) -> None:
    merge.failure = StorageError(Problem(subject="models[/bold]", message="[red]gone[/red] :boom:"))
    result = invoke("merge", "c", "o")
    assert result.exit_code == 1
    assert "models[/bold]" in result.stderr
    assert "[red]gone[/red] :boom:" in result.stderr


@pytest.mark.parametrize(("started", "text"), [(True, "the same command resumes"), (False, "nothing written")])
def test_an_interrupt_says_how_to_go_on(merge: Recorder, started: bool, text: str) -> None:
    merge.failure, merge.started = KeyboardInterrupt(), started
    result = invoke("merge", "c", "o")
    assert result.exit_code == 130
    assert text in result.stderr


def test_an_unexpected_error_shows_its_traceback_only_with_v(merge: Recorder) -> None:
    merge.failure = ZeroDivisionError("by nought")
    result = invoke("merge", "c", "o")
    assert result.exit_code == 1
    assert "ZeroDivisionError: by nought" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in invoke("merge", "c", "o", "-v").stderr


def test_json_is_one_value_per_line_errors_too(merge: Recorder) -> None:
    merge.failure, merge.started = PlanError(*FIVE), True
    result = invoke("merge", "c", "o", "--json", "--lazy-unpickle")
    values = [json.loads(line) for line in result.stdout.splitlines()]
    assert [value["event"] for value in values] == ["message", "run_started", "error"]
    assert values[1]["shard_count"] == 3
    assert values[2]["exit_code"] == 2
    assert values[2]["problems"][0]["line"] == 9
    assert result.stderr == ""


def test_quiet_prints_nothing(merge: Recorder) -> None:
    result = invoke("merge", "c", "o", "--quiet")
    assert result.stdout + result.stderr == ""


def test_the_end_names_the_next_command(merge: Recorder) -> None:
    result = invoke("merge", "c", "my models/o")
    assert "1.0 GB, 3 shards, 4.2 s, 1 kept from an earlier run" in result.stdout
    assert "raymerge verify 'my models/o'" in result.stdout
    assert 'from_pretrained("my models/o")' in result.stdout


def test_event_names() -> None:
    event = TaskFinished(task="t", read_bytes=1, written_bytes=1, seconds=1.0)
    assert event_name(event) == "task_finished"


def commands() -> list[str]:
    return sorted(typer.main.get_group(app).commands)


@pytest.mark.parametrize("command", commands())
def test_every_help_ends_with_an_example_of_the_command(command: str) -> None:
    output = invoke(command, "--help").output.rstrip()
    assert output.splitlines()[-1].strip().startswith(f"raymerge {command}"), output[-200:]


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["methods", "ties", "--example"], ["--version"]])
def test_commands_that_compute_nothing_load_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from raymerge.cli import main\n"
        f"sys.argv = ['raymerge', *{arguments!r}]\n"
        "try: main()\n"
        "finally:\n"
        "    heavy = ('torch', 'ray', 'numba', 'transformers', 's3fs', 'botocore')\n"
        "    print(*(name for name in heavy if name in sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout
    assert result.stderr.strip() == ""


def test_python_m_raymerge_is_the_same_program(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "raymerge", "methods", "linear", "--example"],
        capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "merge_method: linear" in result.stdout


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--help"}))
def test_every_option_in_the_readme_exists(option: str) -> None:
    helps = [RUNNER.invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output for command in commands()]
    assert any(re.search(rf"{option}(?![\w-])", text) for text in helps)


def test_every_command_in_the_readme_exists() -> None:
    told = set(re.findall(r"raymerge (\w+)", "".join(re.findall(r"```.*?```|`[^`]+`", README, re.DOTALL))))
    assert told <= set(commands()), told
    assert set(commands()) <= told


@pytest.mark.parametrize("command", ["merge", "plan"])
def test_an_empty_name_is_not_the_working_directory(command: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("merge_method: passthrough\nmodels: [{model: a}]\n")
    done = RUNNER.invoke(app, [command, str(recipe), ""])
    assert isinstance(done.exception, UsageError)
    assert "OUT: found an empty name" in str(done.exception)
