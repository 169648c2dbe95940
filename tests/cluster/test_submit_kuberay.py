"""Merges as RayJobs: the rendered manifest, and kubectl's part, played by a script."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import FOLDER
from typer.testing import CliRunner

from raymerge.cli.app import app
from raymerge.errors import UsageError
from raymerge.submit.follow import Status
from raymerge.submit.kuberay import DEFAULT_MANIFEST, KubeRayJobs, read_manifest, render
from raymerge.submit.request import JobRequest

IMAGE = "registry.local/raymerge:1"
RECIPE = "merge_method: passthrough # as it is\nmodels:\n  - model: org/a\n"
REQUEST = JobRequest(
    job_id="raymerge-1",
    recipe=RECIPE,
    arguments=("s3://bucket/out", "--out-shard-size", "500M"),
    environment={"AWS_REGION": "eu-west-1"},
)


@pytest.fixture
def documents() -> tuple[Any, Any]:
    config_map, job = yaml.safe_load_all(render(read_manifest(None), REQUEST, image=IMAGE))
    return config_map, job


def containers(job: Any) -> list[Any]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_manifest_that_comes_along_is_the_one_of_the_folder() -> None:
    assert DEFAULT_MANIFEST.read_bytes() == (FOLDER / "kuberay-rayjob.yaml").read_bytes()


def test_only_what_the_request_says_changes(documents: tuple[Any, Any]) -> None:
    _, job = documents
    (_, template) = yaml.safe_load_all(read_manifest(None))
    for each in (job, template):
        del each["metadata"]["name"], each["spec"]["entrypoint"]
        del each["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
        for container in containers(each):
            del container["image"]
            container["env"] = [entry for entry in container["env"] if entry["name"] != "AWS_REGION"]
    assert job == template


def test_recipe_command_image_and_settings_are_filled_in(documents: tuple[Any, Any]) -> None:
    config_map, job = documents
    assert config_map["data"] == {"config.yaml": RECIPE}
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"] == [{"name": "recipe", "configMap": {"name": config_map["metadata"]["name"]}}]
    assert job["metadata"]["name"] == "raymerge-1"
    command = shlex.split(job["spec"]["entrypoint"])
    assert command == ["raymerge", "merge", "/etc/raymerge/config.yaml", *REQUEST.arguments]
    for container in containers(job):
        assert container["image"] == IMAGE
        regions = [entry for entry in container["env"] if entry["name"] == "AWS_REGION"]
        assert regions == [{"name": "AWS_REGION", "value": "eu-west-1"}]


def test_the_recipe_stands_readably_in_the_text() -> None:
    assert "    merge_method: passthrough # as it is\n" in render(read_manifest(None), REQUEST, image=IMAGE)


def test_a_manifest_without_an_image_is_refused() -> None:
    with pytest.raises(UsageError, match="--image"):
        render(read_manifest(None), REQUEST)


def test_an_argument_that_a_shell_would_change_is_refused() -> None:
    request = JobRequest(job_id="j", recipe=RECIPE, arguments=("s3://bucket/a b",))
    with pytest.raises(UsageError, match="a shell on the way"):
        render(read_manifest(None), request, image=IMAGE)


@pytest.mark.parametrize(
    ("manifest", "found"),
    [
        ("kind: Pod\n", "found 0 documents of kind RayJob"),
        ("kind: RayJob\n", "spec"),
        ("kind: [\n", "not YAML"),
        (read_manifest(None).replace("name: recipe", "name: other"), "volume `recipe`"),
    ],
)
def test_a_manifest_that_cannot_be_filled_in_says_why(manifest: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        render(manifest, REQUEST, image=IMAGE)


KUBECTL = """#!{python}
import json, pathlib, sys
state = pathlib.Path({state!r})
told = json.loads(state.read_text())
told["calls"].append(sys.argv[1:])
if sys.argv[1] == "apply":
    told["applied"] = sys.stdin.read()
elif sys.argv[1] == "get":
    (first, *rest) = told["states"]
    told["states"] = rest or [first]
    print(json.dumps({{"status": first}}))
elif sys.argv[1] == "logs":
    (first, *rest) = told["logs"]
    told["logs"] = rest or [first]
    print(first, end="")
state.write_text(json.dumps(told))
sys.exit(told["exit"])
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that plays back what the returned file says."""
    state = tmp_path / "kubectl.json"
    state.write_text(json.dumps({"calls": [], "states": [{}], "logs": [""], "exit": 0}))
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, state=str(state)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr("raymerge.submit.follow.LOOK_SECONDS", 0.01)
    return state


def play(state: Path, **values: Any) -> None:
    state.write_text(json.dumps({**json.loads(state.read_text()), **values}))


def submit(folder: Path, *options: str) -> Any:
    config = folder / "config.yaml"
    config.write_text(RECIPE)
    return CliRunner().invoke(app, ["submit", str(config), "s3://bucket/out", "--kuberay", "--image", IMAGE, *options])


@pytest.mark.parametrize(("end", "code"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_a_rayjob_is_applied_and_followed_to_its_end(kubectl: Path, tmp_path: Path, end: str, code: int) -> None:
    done = {"jobStatus": end, "jobDeploymentStatus": "Complete" if code == 0 else "Failed", "jobId": "a"}
    running = {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "jobId": "a"}
    play(kubectl, states=[{}, {}, running, running, done], logs=["", "one\n", "one\ntwo\n"])
    result = submit(tmp_path)
    assert (result.exit_code, result.stdout) == (code, "one\ntwo\n"), result.stderr
    told = json.loads(kubectl.read_text())
    (_, job) = yaml.safe_load_all(told["applied"])
    assert told["calls"][0] == ["apply", "-f", "-"]
    assert ["get", "rayjob", job["metadata"]["name"], "-o", "json"] in told["calls"]


def test_the_log_of_another_cluster_is_shown_from_its_start(kubectl: Path, tmp_path: Path) -> None:
    first = {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "jobId": "a"}
    retry = {"jobStatus": "FAILED", "jobDeploymentStatus": "Retrying", "jobId": "a"}
    second = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete", "jobId": "b"}
    play(kubectl, states=[first, retry, retry, second], logs=["first try\n", "first try\n", "again\n"])
    result = submit(tmp_path)
    assert (result.exit_code, result.stdout) == (0, "first try\nagain\n"), result.stderr


def test_a_failed_cluster_that_is_replaced_is_no_end(kubectl: Path) -> None:
    play(kubectl, states=[{"jobStatus": "FAILED", "jobDeploymentStatus": "Retrying"}])
    assert KubeRayJobs().state("j").status is Status.PENDING


def test_what_kubectl_refuses_is_told(kubectl: Path, tmp_path: Path) -> None:
    play(kubectl, exit=1)
    result = submit(tmp_path)
    assert result.exit_code == 1
    assert "could not apply" in result.stderr


def test_without_kubectl_rendering_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = submit(tmp_path)
    assert refused.exit_code == 2
    assert "--render" in refused.stderr
    rendered = submit(tmp_path, "--render")
    assert rendered.exit_code == 0
    assert [each["kind"] for each in yaml.safe_load_all(rendered.stdout)] == ["ConfigMap", "RayJob"]
