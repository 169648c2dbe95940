"""Two Ray nodes with different working directories, no shared disk, and none of the driver's environment.

The nodes run in mount namespaces of their own: where this process has its models, the worker node has an empty disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from merges import two_tune_recipe
from s3_server import S3Server

import raymerge
from raymerge.storage import store_for

RAY = Path(sys.executable).with_name("ray")


def can_unshare() -> bool:
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-m", "true"], check=False, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_unshare(), reason="mount namespaces need root")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    address: str
    work_folder: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_node(folder: Path, hidden: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """A node whose working directory is `folder` and which sees an empty disk where this process has `hidden`."""
    folder.mkdir()
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "RAY_AUTH_MODE": "disabled", **env}
    ray = f"exec {RAY} start --block --disable-usage-stats {' '.join(arguments)}"
    with (folder / "node.log").open("wb") as log:
        return subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {hidden} && cd {folder} && {ray}"],
            env=clean,
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def cluster(s3_process: S3Server, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head that runs no tasks, and one worker node with two cores."""
    root = tmp_path_factory.mktemp("nodes")
    port = free_port()
    address = f"127.0.0.1:{port}"
    nodes = [
        start_node(
            root / "head", models, {}, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir=/tmp/rm-{port}", "--node-ip-address=127.0.0.1",
        )
    ]  # fmt: skip
    try:
        wait_for_port(port)
        nodes.append(
            start_node(
                root / "worker", models, s3_process.env, f"--address={address}", "--num-cpus=2",
                "--object-store-memory=100000000",
            )
        )  # fmt: skip
        yield Cluster(address=address, work_folder=root)
    finally:
        for node in nodes:
            os.killpg(node.pid, signal.SIGTERM)
        for node in nodes:
            end(node)
        shutil.rmtree(f"/tmp/rm-{port}", ignore_errors=True)


def end(node: subprocess.Popen[bytes]) -> None:
    try:
        node.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def merge_from_outside(
    cluster: Cluster, config: Path, out: str, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raymerge", "merge", str(config), out, "--address", cluster.address]
    return subprocess.run(
        [*command, "--out-shard-size", "1MB"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **env},
    )


def wait_for_worker(cluster: Cluster) -> None:
    """Until the worker node has joined; asked by a process of its own, so that this one stays without Ray."""
    code = f"""
import ray, time
ray.init(address={cluster.address!r}, log_to_driver=False)
deadline = time.monotonic() + 60
while ray.cluster_resources().get("CPU", 0) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.2)
"""
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, timeout=90)


def test_local_paths_are_refused_before_work_and_s3_succeeds(
    cluster: Cluster, s3: S3Server, models: Path, tmp_path: Path
) -> None:
    wait_for_worker(cluster)
    root, store = s3.folder(), store_for("s3://any")
    config = tmp_path / "config.json"

    config.write_text(json.dumps(two_tune_recipe(models)))
    refused = merge_from_outside(cluster, config, f"{root}/refused", s3.env)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    for name in ("base", "a", "b"):
        assert f"{models / name}" in refused.stderr.replace("\n", "")
    assert "cannot see" in refused.stderr
    assert store.list(f"{root}/refused") == ()

    for model in sorted(models.iterdir()):
        for path in sorted(model.iterdir()):
            store.put(f"{root}/models/{model.name}/{path.name}", path.read_bytes())
    config.write_text(json.dumps(two_tune_recipe(f"{root}/models")))
    local_out = merge_from_outside(cluster, config, str(tmp_path / "out"), s3.env)
    assert (local_out.returncode == 2) is not (tmp_path / "out").exists(), local_out.stderr

    done = merge_from_outside(cluster, config, f"{root}/merged", s3.env)
    assert done.returncode == 0, done.stdout + done.stderr
    raymerge.merge(config, f"{root}/inline", executor="inline", out_shard_size="1MB")
    names = {info.url.rsplit("/", 1)[-1]: info for info in store.list(f"{root}/merged")}
    expected = {info.url.rsplit("/", 1)[-1]: info for info in store.list(f"{root}/inline")}
    assert names.keys() == expected.keys()
    for name, info in names.items():
        content = store.read(info.url, max_bytes=1 << 30)
        assert content == store.read(expected[name].url, max_bytes=1 << 30), name
