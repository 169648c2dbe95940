"""The same against a real dashboard: a head of its own, S3 in and out."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoints import write_llama
from merges import two_tune_recipe
from s3_server import S3Server

import raymerge
from raymerge.storage import store_for

# What ray[default] has and plain Ray lacks: without them the head starts no job server.
MISSING = [name for name in ("aiohttp_cors", "opencensus", "prometheus_client") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason="Ray's dashboard is not installed: pip install 'raymerge[dashboard]'"),
]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise TimeoutError(log.read_text())


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where its dashboard and its metrics are."""

    address: str
    metrics: str


@pytest.fixture(scope="module")
def dashboard(s3_process: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head as a cluster file starts it: its credentials are those of its environment."""
    folder = tmp_path_factory.mktemp("head")
    program = folder / "raymerge"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m raymerge "$@"\n')
    program.chmod(0o755)
    port, dashboard_port, agent_port, metrics_port = free_ports(4)
    environment = {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "disabled",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **s3_process.env,
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        f"--port={port}", f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={agent_port}",
        "--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir=/tmp/rm-{port}",
        f"--metrics-export-port={metrics_port}",
    ]  # fmt: skip
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{dashboard_port}"
        wait_for(f"{address}/api/version", head, log)
        yield Head(address=address, metrics=f"http://127.0.0.1:{metrics_port}/metrics")
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(f"/tmp/rm-{port}", ignore_errors=True)


@pytest.fixture
def recipe(s3: S3Server, tmp_path: Path) -> tuple[Path, str]:
    """A recipe of models in S3, and the folder they lie in."""
    root, store = s3.folder(), store_for("s3://any")
    base = write_llama(tmp_path / "base")
    for name in ("base", "a", "b"):
        model = base if name == "base" else write_llama(tmp_path / name, seed=ord(name), delta_of=base)
        for path in sorted(Path(model).iterdir()):
            store.put(f"{root}/models/{name}/{path.name}", path.read_bytes())
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(two_tune_recipe(f"{root}/models"), indent=1) + "\n")
    return config, root


def submit(address: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raymerge", "submit", *arguments, "--address", address]
    # No credentials and no Ray of this side: the cluster has its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment["RAY_AUTH_MODE"] = "disabled"
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_merge_runs_on_the_cluster_and_equals_one_made_here(dashboard: Head, recipe: tuple[Path, str]) -> None:
    config, root = recipe
    process = submit(dashboard.address, str(config), f"{root}/out", "--out-shard-size", "20KB")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    assert f"shards into {root}/out" in output
    assert output.count(f"done  {root}/out") == 1
    raymerge.merge(config, f"{root}/inline", executor="inline", out_shard_size="20KB")
    store = store_for(root)
    contents = [
        {info.url.rpartition("/")[2]: store.read(info.url, max_bytes=1 << 30) for info in store.list(f"{root}/{name}")}
        for name in ("out", "inline")
    ]
    assert len(contents[0]) > 5
    assert contents[0] == contents[1]


def test_prometheus_finds_the_metrics_of_a_merge(dashboard: Head, recipe: tuple[Path, str]) -> None:
    config, root = recipe
    process = submit(dashboard.address, str(config), f"{root}/out", "--out-shard-size", "20KB")
    found: set[str] = set()
    deadline = time.monotonic() + 120
    names = {"read_bytes", "written_bytes", "shards_done", "task_seconds"}  # no retry happens
    while not names <= found and time.monotonic() < deadline:
        with urllib.request.urlopen(dashboard.metrics, timeout=10) as answer:
            found |= set(re.findall(r"^ray_raymerge_(\w+)_total\{", answer.read().decode(), re.MULTILINE))
        time.sleep(0.5)
    process.communicate(timeout=60)
    assert found >= names


def test_the_jobs_exit_code_comes_back(dashboard: Head, recipe: tuple[Path, str]) -> None:
    config, root = recipe
    config.write_text(config.read_text().replace("/models/a", "/models/missing"))
    process = submit(dashboard.address, str(config), f"{root}/out")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, output + errors
    assert f"{root}/models/missing" in output.replace("\n", "").replace(" ", "")
    assert "failed" in errors


def test_a_detached_job_goes_on_and_is_attached_to_again(dashboard: Head, recipe: tuple[Path, str]) -> None:
    config, root = recipe
    process = submit(dashboard.address, str(config), f"{root}/out")
    assert process.stderr is not None
    line = process.stderr.readline()
    job = line.split()[-1]
    assert job.startswith("raymerge-"), line
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"--attach {job}" in errors
    attached = submit(dashboard.address, "--attach", job)
    output, errors = attached.communicate(timeout=120)
    assert attached.returncode == 0, output + errors
    assert output.count(f"done  {root}/out") == 1
