"""A cluster of hosts and a store, and merges on it that are watched and disturbed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from host_lab import Host, Lab
from s3_server import S3Server

from raymerge.storage import store_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6379
SHARD_SIZE = "2MB"
# A silent node is given up after some 10 seconds, instead of a minute.
DETECTION = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2500",
    "RAY_health_check_failure_threshold": "4",
}
DETECTION_SECONDS = 4 * 3.5
# What a run reads beside shards: headers and configs of the inputs, listings, and the test that watches.
SIDE_BYTES = 1_500_000


@dataclass
class Merge:
    """A running `raymerge merge`: its events as they come."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: str = ""
    _threads: list[threading.Thread] = field(default_factory=list)

    def follow(self) -> Merge:
        for target in (self._read_events, self._read_errors):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.events.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.errors = stream.read()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["event"] == kind]

    @property
    def retries(self) -> list[str]:
        return [event["cause"] for event in self.of("task_retried")]

    @property
    def started_count(self) -> int:
        return len(self.of("task_started"))

    @property
    def lost_count(self) -> int:
        """Attempts that began and gave nothing."""
        return self.started_count - len(self.of("task_finished"))

    def running(self, *, seconds: float) -> list[str]:
        """The nodes of tasks that began that long ago and are not done."""
        at: dict[str, dict[str, Any]] = {}
        for event in list(self.events):
            if event["event"] == "task_started":
                at[event["task"]] = event
            elif event["event"] in ("task_finished", "task_retried"):
                at.pop(event["task"], None)
        return [event["node"] for event in at.values() if time.time() - event["time"] >= seconds]

    def wait_until(self, what: Callable[[Merge], bool], *, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not what(self):
            assert self.process.poll() is None, f"the merge ended too soon\n{self.describe()}"
            assert time.monotonic() < deadline, f"the merge did not come so far\n{self.describe()}"
            time.sleep(0.02)

    def finish(self, *, seconds: float = 240) -> Merge:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the merge does not end\n{self.describe()}") from None
        for thread in self._threads:
            thread.join(10)
        assert self.process.returncode == 0, self.describe()
        return self

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for thread in self._threads:
            thread.join(10)

    def describe(self) -> str:
        return "\n".join([*map(str, self.events[-12:]), self.errors[-3000:], f"status {self.process.returncode}"])


@dataclass
class RayLab:
    """A head that runs no tasks, worker hosts with one core each, and a store with models."""

    lab: Lab
    folder: Path
    store: Host
    server: S3Server
    models: str
    extra_env: dict[str, str] = field(default_factory=dict)
    head: Host | None = None
    workers: list[Host] = field(default_factory=list)
    _names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(ROOT),
            "RAY_DISABLE_IMPORT_WARNING": "1",
            **DETECTION,
            **self.server.env,
            **self.extra_env,
        }

    @property
    def address(self) -> str:
        assert self.head is not None
        return f"{self.head.address}:{PORT}"

    def start_head(self) -> Host:
        self.head = self._start_node("head", "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        self.wait_for_workers(0)
        return self.head

    def add_worker(self, *arguments: str, hidden: Sequence[Path] = (), env: Mapping[str, str] | None = None) -> Host:
        worker = self._start_node(
            "worker", f"--address={self.address}", "--num-cpus=1", *arguments, hidden=hidden, env=env
        )
        self.workers.append(worker)
        return worker

    def have_workers(self, count: int) -> list[Host]:
        """Living workers, as many as wanted; the others are gone."""
        for worker in [worker for worker in self.workers if not worker.processes("raylet/raylet")]:
            self.kill(worker)
        while len(self.workers) < count:
            self.add_worker()
        self.wait_for_workers(count)
        return self.workers

    def kill(self, worker: Host) -> None:
        self.workers.remove(worker)
        self.lab.remove(worker)

    def stop(self) -> None:
        for host in (*self.workers, *([self.head] if self.head else [])):
            self.lab.remove(host)
        self.workers.clear()
        self.head = None

    def at(self, address: str) -> Host:
        return next(host for host in self.workers if host.address == address)

    def _start_node(
        self, kind: str, *arguments: str, hidden: Sequence[Path] = (), env: Mapping[str, str] | None = None
    ) -> Host:
        host = self.lab.add_host(f"{kind}{next(self._names)}")
        command = [RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=80000000",
                   f"--node-ip-address={host.address}", "--memory=2000000000", *arguments]  # fmt: skip
        host.start(command, env={**self.env, **(env or {})}, log=self.folder / f"{host.name}.log", hidden=hidden)
        return host

    def wait_for_workers(self, count: int) -> None:
        assert self.head is not None
        code = f"""
import sys, time
from ray._raylet import GcsClient
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        nodes = GcsClient(address={self.address!r}).get_all_node_info(timeout=5).values()
        alive = [node for node in nodes if node.state == 0]
        if len(alive) == {count + 1}:
            sys.exit(0)
    except Exception as error:
        last = error
    time.sleep(0.3)
sys.exit("not {count} workers")
"""
        subprocess.run(self.head.inside([sys.executable, "-c", code]), env=self.env, check=True, timeout=90)

    def merge(self, recipe: Mapping[str, Any], out: str, *arguments: str, shard_size: str = SHARD_SIZE) -> Merge:
        """Start `raymerge merge` on the head."""
        assert self.head is not None
        command = [sys.executable, "-m", "raymerge", "merge", json.dumps(recipe) + "\n", out, "--json",
                   "--address", self.address, "--out-shard-size", shard_size,
                   "--methods", str(HERE / "slow_average.py"), *arguments]  # fmt: skip
        process = subprocess.Popen(
            self.head.inside(command), env=self.env, cwd=self.folder, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return Merge(process=process).follow()

    def recipe(self, *, seconds: float = 0.0) -> dict[str, Any]:
        return {
            "merge_method": "slow_average",
            "dtype": "bfloat16",
            "parameters": {"seconds": seconds},
            "models": [{"model": f"{self.models}/{name}"} for name in "ab"],
        }

    def digest(self, url: str) -> dict[str, str]:
        store = store_for(url)
        return {
            info.url.rpartition("/")[2]: hashlib.sha256(store.read(info.url, max_bytes=1 << 30)).hexdigest()
            for info in store.list(url)
        }

    def upload(self, folder: Path) -> None:
        store = store_for(self.models)
        for path in sorted(folder.glob("*/*")):
            store.put(f"{self.models}/{path.parent.name}/{path.name}", path.read_bytes())
