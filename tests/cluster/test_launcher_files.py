"""The files for Ray's cluster launcher: Ray's own checks, and each cloud's for what Ray hands on unread."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray.autoscaler
from botocore.validate import ParamValidator
from cluster_files import load, strict, unnoticed
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = ("aws-spot.yaml", "gcp-spot.yaml")
FREE = frozenset({"available_node_types", "resources", "labels", "file_mounts", "node_config"})
SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
GCP_SCHEMA = Path(__file__).parent / "gcp_instance.schema.json"


def accepted_by_ray(config: dict[str, Any]) -> bool:
    """Whether `ray up` would begin; keys of `provider` that Ray would ignore count as wrong too."""
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
        jsonschema.validate(config, strict(json.loads(SCHEMA.read_text(encoding="utf-8"))))
    except (jsonschema.ValidationError, ValueError, KeyError, AssertionError):
        return False
    return True


@cache
def run_instances() -> Any:
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def accepted_by_ec2(node: dict[str, Any]) -> bool:
    return not ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, run_instances()).has_errors()


def accepted_by_compute_engine(node: dict[str, Any]) -> bool:
    schema = json.loads(GCP_SCHEMA.read_text(encoding="utf-8"))
    return bool(jsonschema.Draft7Validator(schema).is_valid(node))


CLOUDS = {"aws": accepted_by_ec2, "gcp": accepted_by_compute_engine}


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    (config,) = load(name)
    assert accepted_by_ray(config)


@pytest.mark.parametrize("name", FILES)
def test_ray_refuses_any_misspelt_key(name: str) -> None:
    (config,) = load(name)
    assert unnoticed(config, is_valid=accepted_by_ray, free=FREE) == []


@pytest.mark.parametrize("name", FILES)
def test_ray_refuses_any_misspelt_key_of_a_node_type(name: str) -> None:
    (config,) = load(name)
    free = FREE - {"available_node_types"}
    paths = unnoticed(config, is_valid=accepted_by_ray, free=free)
    assert [path for path in paths if path[0] == "available_node_types" and len(path) > 2] == []


@pytest.mark.parametrize("name", FILES)
def test_the_cloud_takes_every_node_and_refuses_any_misspelt_key(name: str) -> None:
    (config,) = load(name)
    accepted = CLOUDS[config["provider"]["type"]]
    for node_type in config["available_node_types"].values():
        assert accepted(node_type["node_config"])
        assert unnoticed(node_type["node_config"], is_valid=accepted, free=frozenset()) == []


@pytest.mark.parametrize("name", FILES)
def test_the_head_is_on_demand_without_tasks_and_the_workers_are_spot(name: str) -> None:
    (config,) = load(name)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert not is_spot(head["node_config"])
    for node_type in config["available_node_types"].values():
        assert (node_type["labels"]["market-type"] == "spot") == is_spot(node_type["node_config"])
    growing = [each for each in config["available_node_types"].values() if each.get("max_workers")]
    assert growing
    assert all(is_spot(each["node_config"]) for each in growing)


def is_spot(node: dict[str, Any]) -> bool:
    aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return aws or node.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("name", FILES)
def test_set_up_installs_from_the_clone_that_is_mounted(name: str) -> None:
    (config,) = load(name)
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"] == {f"{home}/raymerge": "."}
    install = next(command for command in config["setup_commands"] if "raymerge[dashboard]" in command)
    assert "-c ~/raymerge/constraints.txt" in install
