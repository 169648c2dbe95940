"""What is sent to a cluster: the recipe itself, nothing of this machine, no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raymerge.cli.app import app
from raymerge.errors import PlanError, RecipeError, UsageError
from raymerge.submit import ray_jobs
from raymerge.submit.ray_jobs import job_request
from raymerge.submit.request import JobRequest, make_request, read_environment, shell_entrypoint

OUT = "s3://bucket/out"
RECIPE = "merge_method: passthrough\nmodels:\n  - model: {}\n"


def submitted(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["submit", *arguments, "--render"])
    assert result.exit_code == 0, result.output
    body: dict[str, Any] = json.loads(result.stdout)
    return body


def run_entrypoint(request: JobRequest, folder: Path) -> tuple[list[str], str]:
    """What `raymerge` on the cluster gets as arguments and on standard input."""
    program = folder / "raymerge"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "json.dump([sys.argv[1:], sys.stdin.buffer.read().decode()], sys.stdout)\nsys.exit(7)\n"
    )
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    result = subprocess.run(
        shell_entrypoint(request), shell=True, env=environment, capture_output=True, timeout=30, check=False
    )
    assert result.returncode == 7, result.stderr  # the job's own status, also through a pipe
    arguments, text = json.loads(result.stdout)
    return arguments, text


NASTY = "a: '$HOME `id` \"q\" \\n'\n# it's 100% größer\nRECIPE\nRECIPE_\n"


@pytest.mark.parametrize("text", [NASTY, "b: 1\n" * 60_000, "a: 1\nb: 2"], ids=["nasty", "long", "no last end"])
def test_the_recipe_arrives_as_it_is(text: str, tmp_path: Path) -> None:
    request = JobRequest(job_id="j", recipe=text, arguments=("s3://b/o u't", "--random-seed", "5"))
    assert run_entrypoint(request, tmp_path) == (["merge", "-", "s3://b/o u't", "--random-seed", "5"], text)


@settings(max_examples=20, deadline=None)
@given(lines=st.lists(st.sampled_from(["RECIPE", "RECIPE_", "RECIPE__", "x: 1", "", "'"])))
def test_no_line_of_a_recipe_ends_it_early(lines: list[str]) -> None:
    recipe = "\n".join([*lines, ""])
    entrypoint = shell_entrypoint(JobRequest(job_id="j", recipe=recipe, arguments=(OUT,)))
    result = subprocess.run(
        entrypoint.replace(f"raymerge merge - {OUT}", "cat"), shell=True, capture_output=True, text=True, check=True
    )
    assert result.stdout == recipe


def test_a_recipe_that_no_command_line_holds_is_refused() -> None:
    noise = "".join(f"# {os.urandom(60).hex()}\n" for _ in range(2500))
    with pytest.raises(UsageError, match="a command line holds"):
        shell_entrypoint(JobRequest(job_id="j", recipe=noise, arguments=(OUT,)))


@pytest.mark.parametrize(
    "model", ["/data/a", "./a", "~/a", "../a", "a/b/c", "file:///data/a", "/data/a+org/lora", "org/a+/data/lora"]
)
def test_folders_of_this_machine_are_refused(model: str) -> None:
    with pytest.raises(PlanError, match="which the cluster cannot read") as caught:
        make_request(RECIPE.format(model), OUT)
    assert caught.value.problems[0].line is not None


def test_a_hub_id_that_is_a_folder_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_request(RECIPE.format("org/a"), OUT).arguments == (OUT,)
    (tmp_path / "org" / "a").mkdir(parents=True)
    with pytest.raises(PlanError, match="hf://org/a"):
        make_request(RECIPE.format("org/a"), OUT)
    assert make_request(RECIPE.format("hf://org/a"), OUT).arguments == (OUT,)


@pytest.mark.parametrize("out", ["out", "/data/out", "~/out", "file:///data/out"])
def test_an_output_on_this_machine_is_refused(out: str) -> None:
    with pytest.raises(PlanError, match="OUT"):
        make_request(RECIPE.format("org/a"), out)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        make_request(RECIPE.format("/data/a") + "  - model: /data/b\n", "out")
    assert len(caught.value.problems) == 3


def test_a_recipe_with_mistakes_is_not_sent() -> None:
    with pytest.raises(RecipeError):
        make_request("merge_method: dare-ties\nmodles: []\n", OUT)


@pytest.mark.parametrize(
    "text",
    ["https://user:pa55word@host/a", "https://host/a?X-Amz-Signature=pa55word", "org/a # hf_pa55wordpa55word"],
)
def test_a_secret_in_the_recipe_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(PlanError, match="dashboard would show") as caught:
        make_request(RECIPE.format(text), OUT)
    assert "pa55word" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "DB_PASSWORD", "api_key"]
)
def test_secrets_are_not_forwarded(name: str) -> None:
    with pytest.raises(UsageError, match="sounds like a secret") as caught:
        read_environment([f"{name}=pa55word"], {})
    assert "pa55word" not in str(caught.value)


def test_settings_are_forwarded_by_value_or_by_name() -> None:
    found = read_environment(["AWS_REGION", "AWS_ENDPOINT_URL=http://h:1/?a=b"], {"AWS_REGION": "eu-west-1"})
    assert found == {"AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL": "http://h:1/?a=b"}
    with pytest.raises(UsageError, match="is not set here"):
        read_environment(["HF_ENDPOINT"], {})


def test_nothing_of_this_environment_travels_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pa55word")
    monkeypatch.setenv("HF_TOKEN", "pa55word")
    body = job_request(make_request(RECIPE.format("org/a"), OUT))
    assert body["runtime_env"] == {}
    assert "pa55word" not in json.dumps(body)


def test_options_of_merge_are_passed_on_as_they_were_given(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(RECIPE.format("org/a"))
    given_options = [
        "--random-seed", "5", "--no-copy-tokenizer", "--nan", "warn", "--overwrite", "-vv", "-j", "3",
        "--lora-merge-cache", "a b", "--out-shard-size", "500M", "--allow-crimes",
    ]  # fmt: skip
    body = submitted(str(config), OUT, *given_options)
    command = body["entrypoint"].splitlines()[0]
    expected = [
        "--random-seed 5", "--no-copy-tokenizer", "--nan warn", "--overwrite", "--verbose --verbose", "--num-threads 3",
        "--lora-merge-cache 'a b'", "--out-shard-size 500M", "--allow-crimes",
    ]  # fmt: skip
    assert all(f" {each} " in f"{command} " for each in expected)
    assert "--task-memory" not in command
    assert submitted(str(config), OUT)["entrypoint"].startswith(f"raymerge merge - {OUT} <<")


def test_what_choses_a_place_is_not_an_option_of_the_job() -> None:
    result = CliRunner().invoke(app, ["submit", "c.yaml", OUT, "--executor", "inline", "--render"])
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["c.yaml", OUT], "no cluster"),
        (["--address", "http://h:1"], "CONFIG OUT"),
        (["c.yaml", OUT, "--address", "http://h:1", "--kuberay"], "--kuberay"),
        (["c.yaml", OUT, "--address", "http://h:1", "--image", "me/it"], "only KubeRay"),
        (["c.yaml", OUT, "--address", "h:1"], "there is no such file"),
        (["c.yaml", OUT, "--address", "http://h:1", "--methods", "my.py"], "raymerge.methods"),
    ],
)
def test_usage_errors_exit_2_before_anything_is_sent(arguments: list[str], found: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["submit", *arguments])
    assert result.exit_code == 2
    assert found in result.stderr


def test_a_missing_part_of_rays_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(UsageError, match=r"raymerge\[dashboard\]"):
        ray_jobs.RayJobs("http://127.0.0.1:9")
