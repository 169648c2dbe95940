"""With a store that gives every worker the same slow rate, twice the workers read twice as much: nothing serialises."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from fault_proxy import Fault, FaultProxy
from s3_server import S3Server, s3_env

import raymerge
from raymerge.events import Event, RunFinished, RunStarted
from raymerge.storage import store_for

BYTES_PER_SECOND = 4e6
WORKERS = 8
LAYERS = 12  # each is a shard
SHAPE: dict[str, Any] = {"layers": LAYERS, "hidden": 640, "heads": 10, "vocab": 64, "intermediate": 1792}


class RatePerProcess(FaultProxy):
    """Gives each process on this machine so many bytes per second, whatever the number of its connections."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self._process_of: dict[int, int] = {}
        self._free: dict[int, float] = {}
        self._local = threading.local()  # a connection has a thread of its own

    def draw(self, request: BaseHTTPRequestHandler) -> Fault | None:
        port = request.client_address[1]
        if port not in self._process_of:
            self._process_of[port] = process_of_port(port)
        self._local.process = self._process_of[port]
        return super().draw(request)

    def carry(self, *, down: int = 0, up: int = 0) -> None:
        with self._lock:
            self.bytes_down += down
            process, now = self._local.process, time.monotonic()
            self._free[process] = max(self._free.get(process, 0.0), now) + down / BYTES_PER_SECOND
            wait = self._free[process] - now
        time.sleep(wait)


def process_of_port(port: int) -> int:
    """The process whose end of a connection on loopback has this port; 0 where it is gone already."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            wanted = f"socket:[{fields[9]}]"
            break
    else:
        return 0
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for entry in folder.iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(entry) == wanted:
                        return int(folder.parent.name)
    return 0


@pytest.fixture
def slow_store(s3_process: S3Server) -> Iterator[RatePerProcess]:
    with RatePerProcess(s3_process.endpoint) as proxy, s3_env(s3_process, AWS_ENDPOINT_URL=proxy.endpoint):
        import ray

        ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        yield proxy
        ray.shutdown()


@pytest.fixture
def models(s3: S3Server, tmp_path: Path) -> str:
    root = s3.folder()
    for seed, name in enumerate("ab"):
        for path in write_llama(tmp_path / name, seed=seed, **SHAPE).iterdir():
            store_for(root).put(f"{root}/{name}/{path.name}", path.read_bytes())
    return root


def bytes_per_second(models: str, out: str, workers: int) -> float:
    """Every worker has the same number of layers to merge."""
    sources = [{"model": f"{models}/{name}", "layer_range": [0, LAYERS]} for name in "ab"]
    recipe = {
        "merge_method": "slerp",
        "base_model": f"{models}/a",
        "parameters": {"t": 0.5},
        "slices": [{"sources": sources}] * workers,
    }
    times: dict[type[Event], float] = {}
    raymerge.merge(
        recipe,
        out,
        out_shard_size="10MB",
        task_cpus=WORKERS // workers,
        task_memory="160MiB",
        on_event=lambda event: times.setdefault(type(event), time.monotonic()),
    )
    read_bytes = sum(shard.read_bytes for shard in raymerge.plan(recipe).shards)
    return read_bytes / (times[RunFinished] - times[RunStarted])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_throughput_grows_with_workers(models: str, slow_store: RatePerProcess, s3: S3Server, capsys) -> None:
    bytes_per_second(models, s3.folder(), WORKERS)  # starts the worker processes
    rates = {workers: bytes_per_second(models, s3.folder(), workers) for workers in (8, 4, 2, 1)}
    with capsys.disabled():
        print(f"\nstore at {BYTES_PER_SECOND / 1e6:.0f} MB/s per worker")  # noqa: T201 (figures)
        for workers, rate in sorted(rates.items()):
            share = rate / rates[1] / workers
            print(f"{workers} workers: {rate / 1e6:5.1f} MB/s, {share:.2f} of one per worker")  # noqa: T201
    assert all(rate >= 0.9 * workers * rates[1] for workers, rate in rates.items())
