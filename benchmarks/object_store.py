"""Merge between objects of one S3 server on this machine: what the client takes, and what it does while it waits.

    python -m benchmarks.object_store --shape 100m

Reading: CPU seconds per GB for every tensor of four models, by this project's store and by plain s3fs, one range each.
Merging: TIES of the same models, throughput, CPU seconds per GB and requests. Overlap: the same merge through a proxy
that lets so many bytes per second pass, each merge of a tensor padded to the time that its inputs take to arrive, so
that not the cores are the limit; compute is idle where neither real nor padded work goes on.

How throughput grows with workers is in tests/zerocopy/test_worker_scaling.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibrate import GB, cpu_seconds, object_store, upload
from benchmarks.compare import commit, machine
from benchmarks.make_checkpoints import SHAPES, Shape, make_checkpoints

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
PROXY = (
    "import sys; from fault_proxy import start_proxy; proxy = start_proxy(sys.argv[1]); "
    "proxy.bytes_per_second = float(sys.argv[2]); print(proxy.endpoint, flush=True); sys.stdin.read()"
)
# As the 1.1B model, no tensor is more than a sixteenth of it: nothing can overlap with the arrival of the only one.
OVERLAP_SHAPE = replace(SHAPES["100m"], vocab=8000, layers=60)
THREADS = 16
TOGETHER = 32  # ranges that s3fs is asked for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    url: str
    offset: int
    nbytes: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians over the repeats."""

    seconds: float
    cpu_seconds: float
    requests: int


def measured(work: Callable[[], object], repeats: int) -> Cost:
    """After one run that does not count."""
    from raymerge.storage import traffic

    work()
    found = []
    for _ in range(repeats):
        wall, cpu, requests = time.perf_counter(), cpu_seconds(), traffic().requests
        work()
        found.append((time.perf_counter() - wall, cpu_seconds() - cpu, traffic().requests - requests))
    seconds, cpu, requests = (statistics.median(column) for column in zip(*found, strict=True))
    return Cost(seconds=seconds, cpu_seconds=cpu, requests=int(requests))


def recipe(models: str) -> dict[str, Any]:
    tuned = [{"model": f"{models}/{name}", "parameters": {"weight": 0.4, "density": 0.5}} for name in "abc"]
    return {"merge_method": "ties", "base_model": f"{models}/base", "models": tuned, "dtype": "bfloat16"}


def tensor_ranges(models: str) -> list[Range]:
    """One for each stored tensor."""
    import raymerge

    jobs = [job for shard in raymerge.plan(recipe(models)).shards for job in shard.jobs]
    return [
        Range(url=ref.file.url, offset=ref.offset, nbytes=ref.nbytes, version=ref.file.version)
        for job in jobs
        for ref in job.reads
    ]


def planned_ranges(models: str) -> list[Range]:
    """Those that a merge reads: neighbours together."""
    import raymerge
    from raymerge.merging.schedule import Batch, schedule

    jobs = [job for shard in raymerge.plan(recipe(models)).shards for job in shard.jobs]
    steps = schedule(jobs, 512 << 20, lambda _: False)
    return [
        Range(url=run.file.url, offset=run.offset, nbytes=run.nbytes, version=run.file.version)
        for step in steps
        if isinstance(step, Batch)
        for run in step.runs
    ]


def read_by_store(ranges: list[Range], buffer: np.ndarray) -> None:
    """Into a buffer that is there before: a merge makes its own once and uses them again."""
    from raymerge.storage import store_for

    def read(each: Range, start: int) -> None:
        view = buffer[start : start + each.nbytes]
        store_for(each.url).read_into(each.url, view, offset=each.offset, version=each.version)

    starts = np.cumsum([0, *(each.nbytes for each in ranges[:-1])]).tolist()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, ranges, starts))


def s3fs_filesystem() -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        key=os.environ["AWS_ACCESS_KEY_ID"],
        secret=os.environ["AWS_SECRET_ACCESS_KEY"],
        client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"},
        skip_instance_cache=True,
    )


def read_by_s3fs(filesystem: Any, ranges: list[Range], *, together: int) -> None:
    for start in range(0, len(ranges), together):
        batch = ranges[start : start + together]
        parts = filesystem.cat_ranges(
            [each.url for each in batch],
            [each.offset for each in batch],
            [each.offset + each.nbytes for each in batch],
            on_error="raise",
        )
        assert [len(part) for part in parts] == [each.nbytes for each in batch]


def reading(models: str, repeats: int) -> None:
    ranges, planned = tensor_ranges(models), planned_ranges(models)
    total = sum(each.nbytes for each in ranges) / GB
    buffer = np.zeros(sum(each.nbytes for each in ranges), np.uint8)
    filesystem = s3fs_filesystem()
    ways: dict[str, Callable[[], None]] = {
        f"s3fs, {TOGETHER} tensors at once": lambda: read_by_s3fs(filesystem, ranges, together=TOGETHER),
        "s3fs, one tensor at a time": lambda: read_by_s3fs(filesystem, ranges, together=1),
        "raymerge, a range for each tensor": lambda: read_by_store(ranges, buffer),
        "raymerge, ranges of a merge": lambda: read_by_store(planned, buffer),
    }
    costs = {name: measured(way, repeats) for name, way in ways.items()}
    print(f"\nreading {total:.2f} GB in {len(ranges)} tensors")
    for name, cost in costs.items():
        requests = f", {cost.requests} requests" if cost.requests else ""
        rate = f"{total / cost.seconds * 1000:6.0f} MB/s"
        print(f"  {name:34} {rate}  {cost.cpu_seconds / total:5.2f} CPU s per GB{requests}")
    names = list(costs)
    least = min(costs[name].cpu_seconds for name in names[:2])
    for name in names[2:]:
        print(f"  {name}: {least / costs[name].cpu_seconds:.1f} times less CPU than the better of s3fs")


def merging(models: str, folder: str, repeats: int) -> None:
    import raymerge
    from raymerge.storage import traffic

    outs = iter(range(100))
    before = traffic()
    cost = measured(lambda: raymerge.merge(recipe(models), f"{folder}/ties-{next(outs)}", executor="inline"), repeats)
    after = traffic()
    read = (after.read_bytes - before.read_bytes) / (repeats + 1) / GB
    written = (after.written_bytes - before.written_bytes) / (repeats + 1) / GB
    print(f"\nTIES between objects, {read:.2f} GB read and {written:.2f} GB written, the server on the same cores")
    print(f"  {(read + written) / cost.seconds * 1000:.0f} MB/s in and out, {cost.seconds:.1f} s")
    print(f"  {cost.cpu_seconds / (read + written):.2f} CPU s per GB in and out, {cost.requests} requests")


@contextmanager
def throttled(bytes_per_second: float) -> Iterator[None]:
    """The store as this process sees it gives so many bytes per second; another process holds them back."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    command = [sys.executable, "-c", PROXY, endpoint, str(bytes_per_second)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
    )
    assert process.stdout is not None
    os.environ["AWS_ENDPOINT_URL"] = process.stdout.readline().strip()
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        process.communicate()


def overlap(models: str, folder: str, bytes_per_second: float) -> None:
    import raymerge
    from raymerge.events import RunStarted
    from raymerge.merging import shard

    plain, busy, began = shard.merge_held, list[tuple[float, float]](), list[float]()

    def padded(job: Any, *arguments: Any, **options: Any) -> int:
        started = time.perf_counter()
        count = plain(job, *arguments, **options)
        time.sleep(max(0.0, job.read_bytes / bytes_per_second - (time.perf_counter() - started)))
        busy.append((started, time.perf_counter()))
        return count

    with throttled(bytes_per_second):
        ranges = planned_ranges(models)
        buffer = np.zeros(sum(each.nbytes for each in ranges), np.uint8)
        started = time.perf_counter()
        read_by_store(ranges, buffer)
        alone = time.perf_counter() - started
        shard.merge_held = padded
        try:
            raymerge.merge(
                recipe(models),
                f"{folder}/overlapped",
                executor="inline",
                task_cpus=1,
                on_event=lambda event: began.append(time.perf_counter()) if isinstance(event, RunStarted) else None,
            )
        finally:
            shard.merge_held = plain
    compute = sum(end - start for start, end in busy)
    idle, first = busy[-1][1] - began[0] - compute, busy[0][0] - began[0]
    total = sum(each.nbytes for each in ranges) / GB
    print(f"\noverlap, {total:.2f} GB, store at {bytes_per_second / 1e6:.0f} MB/s and compute as fast as that")
    print(f"  reading alone {alone:.1f} s, compute {compute:.1f} s, both together {busy[-1][1] - began[0]:.1f} s")
    print(f"  compute idle {idle:.1f} s, {idle / alone:.0%} of reading alone (one after the other: 100%)")
    print(f"  of that {first:.1f} s until the first tensors were there, whatever the size of the model")


def put_models(url: str, shape: Shape) -> None:
    with tempfile.TemporaryDirectory() as local:
        for path in make_checkpoints(Path(local), shape, fine_tunes=3, seed=0, threads=2):
            upload(path, f"{url}/{path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rate", type=float, default=80.0, help="MB/s of the throttled store")
    options = parser.parse_args()
    print(f"commit {commit()}, {machine()}, shape {options.shape}, median of {options.repeat}")
    with object_store() as folder:
        models = f"{folder}/models"
        put_models(models, SHAPES[options.shape])
        reading(models, options.repeat)
        merging(models, folder, options.repeat)
        put_models(f"{folder}/overlap", OVERLAP_SHAPE)
        overlap(f"{folder}/overlap", folder, options.rate * 1e6)


if __name__ == "__main__":
    main()
