"""The KubeRay manifest against KubeRay's own definition of a RayJob, which holds the whole pod template too."""

from __future__ import annotations

from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from cluster_files import ROOT, load, strict, unnoticed

DEFINITION = ROOT.parent / "shared" / "data" / "ray.io_rayjobs.yaml"
FREE = frozenset({"labels", "nodeSelector", "rayStartParams", "requests", "limits"})


@cache
def validator() -> Any:
    if not DEFINITION.is_file():
        pytest.skip(f"KubeRay's resource definition is not at hand ({DEFINITION.name})")
    definition = yaml.load(DEFINITION.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": {}}, "additionalProperties": False}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return jsonschema.Draft202012Validator(schema)


def problems(job: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(job)]


@pytest.fixture(scope="module")
def documents() -> tuple[Any, Any]:
    config_map, job = load("kuberay-rayjob.yaml")
    return config_map, job


@pytest.fixture(scope="module")
def job(documents: tuple[Any, Any]) -> Any:
    return documents[1]


def test_kuberay_takes_the_manifest(job: Any) -> None:
    assert problems(job) == []
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")


def test_kuberay_refuses_any_misspelt_key(job: Any) -> None:
    missed = unnoticed(job, is_valid=lambda changed: not problems(changed), free=FREE)
    assert missed == []


def pods(job: Any) -> dict[str, Any]:
    cluster = job["spec"]["rayClusterSpec"]
    workers = {each["groupName"]: each["template"]["spec"] for each in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"], **workers}


def test_a_cluster_that_dies_is_replaced_and_one_that_is_done_goes_away(job: Any) -> None:
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True  # without it the TTL is refused
    assert spec["ttlSecondsAfterFinished"] > 0


def test_the_second_autoscaler_finds_pods_that_never_restart(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert {pod["restartPolicy"] for pod in pods(job).values()} == {"Never"}


def test_no_shard_lands_on_the_head_and_workers_are_spot(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [each["labels"]["market-type"] for each in cluster["workerGroupSpecs"]] == ["spot"]


@pytest.mark.parametrize("line", ["eks.amazonaws.com/capacityType: SPOT", 'cloud.google.com/gke-spot: "true"'])
def test_selectors_stand_as_comments(line: str) -> None:
    text = (ROOT / "cluster" / "kuberay-rayjob.yaml").read_text(encoding="utf-8")
    assert any(each.lstrip().startswith("#") and line in each for each in text.splitlines())


def test_secrets_come_from_kubernetes_alone(job: Any) -> None:
    for pod in pods(job).values():
        (container,) = pod["containers"]
        environment = {each["name"]: each for each in container["env"]}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
            assert "value" not in environment[name]
            assert environment[name]["valueFrom"]["secretKeyRef"]["optional"] is True
    assert "runtimeEnvYAML" not in job["spec"]


def test_the_recipe_is_mounted_where_the_entrypoint_reads_it(documents: tuple[Any, Any]) -> None:
    config_map, job = documents
    head = pods(job)["head"]
    mount = next(each for each in head["containers"][0]["volumeMounts"] if each["name"] == "recipe")
    volume = next(each for each in head["volumes"] if each["name"] == "recipe")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (file_name,) = config_map["data"]
    assert job["spec"]["entrypoint"].startswith(f"raymerge merge {mount['mountPath']}/{file_name} ")


def test_the_recipe_in_the_manifest_is_one() -> None:
    import raymerge

    (config_map, _) = load("kuberay-rayjob.yaml")
    assert raymerge.load_recipe(config_map["data"]["config.yaml"]).merge_method == "slerp"
