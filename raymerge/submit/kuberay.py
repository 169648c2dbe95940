"""KubeRay as a job server: a RayJob made from a manifest, applied and watched through kubectl."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from raymerge.errors import ExecutionError, Problem, UsageError
from raymerge.recipe.document import UnreadableError, plain, read_document
from raymerge.recipe.emit import to_yaml_documents
from raymerge.submit.follow import JobState, Status, UnreachableError
from raymerge.submit.request import JobRequest

DEFAULT_MANIFEST = Path(__file__).parent / "kuberay-rayjob.yaml"
_PLACEHOLDER_IMAGE = "registry.example.com/"
_VOLUME = "recipe"
_FILE_NAME = "config.yaml"
_MAX_CONFIG_MAP_BYTES = 1_000_000  # Kubernetes takes 1 MiB in all
_KUBECTL_SECONDS = 60.0
_SILENCE_SECONDS = 10.0


def render(manifest: str, request: JobRequest, *, image: str | None = None) -> str:
    """The manifest with the request's name, recipe, command line and settings; comments are dropped.

    The recipe travels in a ConfigMap, the head's volume `recipe`. Raises UsageError for a manifest without a RayJob or
    without that volume, one that still names no image, and arguments that a shell would change.
    """
    job = _ray_job(manifest)
    cluster = _at(job, "spec", "rayClusterSpec")
    templates = [_at(cluster, "headGroupSpec", "template", "spec")]
    templates += [_at(each, "template", "spec") for each in cluster.get("workerGroupSpecs", [])]
    containers = [container for template in templates for container in template["containers"]]
    for container in containers:
        container["image"] = image or container.get("image", _PLACEHOLDER_IMAGE)
        container["env"] = _with_settings(container.get("env", []), request)
    _refuse_placeholder(containers)
    folder = _mount_recipe(templates[0], request)
    job["metadata"] = {**job.get("metadata", {}), "name": request.job_id}
    job["spec"]["entrypoint"] = _entrypoint(f"{folder}/{_FILE_NAME}", request)
    return to_yaml_documents(_config_map(request), job)


def read_manifest(path: str | None) -> str:
    """The manifest at `path`, or the one that comes with raymerge."""
    place = DEFAULT_MANIFEST if path is None else Path(path).expanduser()
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem(subject=f"--manifest {place}", message=f"cannot be read: {error}")) from error


class KubeRayJobs:
    """The RayJobs of the cluster and namespace that kubectl's current context names."""

    def __init__(self) -> None:
        """Raises UsageError where there is no kubectl."""
        found = shutil.which("kubectl")
        if found is None:
            raise UsageError(
                Problem(
                    subject="--kuberay",
                    message="found no kubectl on this machine",
                    remedy="install it, or print the manifest with --render and apply it where kubectl is",
                )
            )
        self._kubectl = found

    def apply(self, manifest: str) -> None:
        try:
            self._run("apply", "-f", "-", text=manifest)
        except UnreachableError as error:
            message = f"kubectl could not apply the RayJob: {error}"
            remedy = "is KubeRay installed, and the right context chosen (`kubectl config current-context`)?"
            raise ExecutionError(Problem(subject="--kuberay", message=message, remedy=remedy)) from error

    def state(self, job_id: str) -> JobState:
        """A job that failed and is to have another cluster is still pending."""
        status = json.loads(self._run("get", "rayjob", job_id, "-o", "json")).get("status", {})
        message = " ".join(text for text in (status.get("reason"), status.get("message")) if text)
        return JobState(status=_status(status), message=message, attempt=status.get("jobId", ""))

    def log(self, job_id: str) -> Generator[str, None, None]:
        """The log of the pod that submits the job inside the cluster; it carries the driver's."""
        command = [self._kubectl, "logs", "--follow", f"job/{job_id}"]
        with subprocess.Popen(  # noqa: S603 - the kubectl on the path, and no shell
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as child:
            try:
                yield from _decoded(child)
            finally:
                child.kill()
            if child.wait() > 0 and child.stderr is not None:
                raise UnreachableError(_last_line(child.stderr.read().decode(errors="replace")))

    def _run(self, *arguments: str, text: str | None = None) -> str:
        command = [self._kubectl, *arguments]
        try:
            result = subprocess.run(  # noqa: S603 - as above
                command, input=text, capture_output=True, text=True, timeout=_KUBECTL_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnreachableError(str(error)) from error
        if result.returncode == 0:
            return result.stdout
        reason = _last_line(result.stderr)
        if "NotFound" in reason:
            message = f"kubectl knows no such RayJob ({reason})"
            remedy = "it is removed a while after its end; `raymerge status OUT` tells how far the output is"
            raise ExecutionError(Problem(subject=" ".join(arguments[1:3]), message=message, remedy=remedy))
        raise UnreachableError(reason)


def _status(status: dict[str, Any]) -> Status:
    job, deployment = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
    if deployment == "Complete" or (deployment == "Failed" and job != "SUCCEEDED"):
        return {"SUCCEEDED": Status.SUCCEEDED, "STOPPED": Status.STOPPED}.get(job, Status.FAILED)
    return Status.RUNNING if job == "RUNNING" else Status.PENDING


def _ray_job(manifest: str) -> dict[str, Any]:
    try:
        documents = [plain(root) for root in read_document(manifest).roots]
    except UnreadableError as error:
        raise UsageError(Problem(subject="--manifest", message=str(error.problem))) from error
    jobs = [each for each in documents if isinstance(each, dict) and each.get("kind") == "RayJob"]
    if len(jobs) != 1:
        raise _manifest_error("kind", f"found {len(jobs)} documents of kind RayJob, expected one")
    return jobs[0]


def _at(value: Any, *path: str) -> dict[str, Any]:
    for number, key in enumerate(path, start=1):
        value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            raise _manifest_error(".".join(path[:number]), "found nothing there, expected a mapping")
    found: dict[str, Any] = value
    return found


def _with_settings(entries: list[dict[str, Any]], request: JobRequest) -> list[dict[str, Any]]:
    kept = [entry for entry in entries if entry["name"] not in request.environment]
    return [*kept, *({"name": name, "value": value} for name, value in request.environment.items())]


def _refuse_placeholder(containers: list[dict[str, Any]]) -> None:
    if any(container["image"].startswith(_PLACEHOLDER_IMAGE) for container in containers):
        message = f"found the placeholder {_PLACEHOLDER_IMAGE}..."
        remedy = "build cluster/Dockerfile, push it, and name it with --image"
        raise UsageError(Problem(subject="image", message=message, remedy=remedy))


def _mount_recipe(head: dict[str, Any], request: JobRequest) -> str:
    """Point the head's volume at the recipe's ConfigMap; where its container has it."""
    volumes = [each for each in head.get("volumes", []) if each.get("name") == _VOLUME]
    mounts = [each for each in head["containers"][0].get("volumeMounts", []) if each.get("name") == _VOLUME]
    if not volumes or not mounts:
        raise _manifest_error("headGroupSpec", f"found no volume `{_VOLUME}` that its container mounts")
    volumes[0]["configMap"] = {"name": request.job_id}
    return str(mounts[0]["mountPath"])


def _entrypoint(config: str, request: JobRequest) -> str:
    arguments = ["raymerge", "merge", config, *request.arguments]
    changed = [each for each in arguments if shlex.quote(each) != each]
    if changed:
        # KubeRay hands the entrypoint to a shell, which splits it, and `ray job submit` quotes the parts for Windows.
        message = "holds characters that a shell on the way would change"
        raise UsageError(
            *(Problem(subject=each, message=message, remedy="use letters, digits and /._-=:,@%+") for each in changed)
        )
    return " ".join(arguments)


def _config_map(request: JobRequest) -> dict[str, Any]:
    size = len(request.recipe.encode())
    if size > _MAX_CONFIG_MAP_BYTES:
        message = f"has {size:,} bytes, a ConfigMap holds {_MAX_CONFIG_MAP_BYTES:,}"
        raise UsageError(Problem(subject="the recipe", message=message))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": request.job_id},
        "data": {_FILE_NAME: request.recipe},
    }


def _decoded(child: subprocess.Popen[bytes]) -> Iterator[str]:
    """What the child prints, as it comes; "" after a silence."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    assert child.stdout is not None
    while True:
        ready, _, _ = select.select([child.stdout], [], [], _SILENCE_SECONDS)
        if not ready:
            yield ""
            continue
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            return
        text = decoder.decode(data)
        if text:
            yield text


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["kubectl failed without a word"])[-1]


def _manifest_error(subject: str, message: str) -> UsageError:
    return UsageError(
        Problem(subject=f"--manifest: {subject}", message=message, remedy="start from cluster/kuberay-rayjob.yaml")
    )
