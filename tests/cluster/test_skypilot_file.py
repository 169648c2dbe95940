"""The SkyPilot task against SkyPilot's own schemas, and its start of a second Ray."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import jsonschema
import pytest
from cluster_files import load, strict, unnoticed
from sky_schemas import find_sky, task_and_resources

SKY_PORT = 6380
FREE = frozenset({"envs", "secrets"})


@pytest.fixture(scope="module")
def task() -> Any:
    (task,) = load("skypilot.yaml")
    return task


@pytest.fixture(scope="module")
def validators() -> tuple[Any, Any]:
    folder = find_sky()
    if folder is None:
        pytest.skip("SkyPilot's schemas are not at hand: pip install --no-deps skypilot")
    whole, resources = task_and_resources(folder)
    return jsonschema.Draft202012Validator(strict(whole)), jsonschema.Draft7Validator(strict(resources))


def problems(task: Any, validators: tuple[Any, Any]) -> list[str]:
    whole, resources = validators
    found = [*whole.iter_errors(task), *resources.iter_errors(task.get("resources", {}))]
    return [f"{error.json_path}: {error.message}" for error in found]


def test_skypilot_takes_the_task(task: Any, validators: tuple[Any, Any]) -> None:
    assert problems(task, validators) == []


def test_skypilot_refuses_any_misspelt_key(task: Any, validators: tuple[Any, Any]) -> None:
    assert unnoticed(task, is_valid=lambda changed: not problems(changed, validators), free=FREE) == []


def test_machines_are_spot_and_come_back(task: Any) -> None:
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["strategy"]


def test_its_ray_keeps_off_the_one_that_skypilot_runs(task: Any) -> None:
    run = task["run"]
    ports = {int(port) for port in re.findall(r"(?:port=|head:|\$head/)(\d+)", run)} - {0}
    assert len(ports) == 1
    assert not ports & {SKY_PORT, 6379}
    assert "ray stop" not in run
    assert "unset RAY_ADDRESS" in run


@pytest.mark.parametrize("step", ["setup", "run"])
def test_scripts_are_bash(task: Any, step: str) -> None:
    subprocess.run(["bash", "-n", "-c", task[step]], check=True, timeout=10)


def test_it_holds_no_secret(task: Any) -> None:
    assert set(task["secrets"].values()) == {""}
