"""Measure the CPU seconds that merging and moving a gigabyte take, for the estimates of `raymerge plan --cluster`.

    python -m benchmarks.calibrate --write raymerge/planning/calibration.py

Methods merge tensors that lie in memory, on one thread. Reads and writes go to a SeaweedFS on loopback; only the
client's CPU counts. What reading and writing take inside a merge, fresh memory and handing over included, is fitted to
whole merges of light methods. Whole merges by heavier ones are then predicted from the parts: the largest difference of
all is the calibration's error.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.make_checkpoints import SHAPES, make_checkpoints

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

ELEMENTS = (2048, 4096)
SMALL = replace(SHAPES["100m"], hidden=1024, inner=2816, heads=16, layers=2)
LARGE = replace(SMALL, layers=26)
GB = 1e9
REPEATS = 3
SETTINGS: dict[str, Any] = {"weight": 0.4, "density": 0.5, "scale": 2.0, "t": 0.4, "select_topk": 0.5}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(work: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """(median, relative spread) of the CPU seconds of `work`, after one run that does not count."""
    work()
    found = []
    for _ in range(repeats):
        before = cpu_seconds()
        work()
        found.append(cpu_seconds() - before)
    median = statistics.median(found)
    return median, (max(found) - min(found)) / median if median else 0.0


def noise(count: int, seed: int) -> np.ndarray:
    """bfloat16 numbers around 0.02; those of different seeds differ by a hundredth of that."""
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32) * np.float32(0.02)
    values += np.random.default_rng(seed + 1).standard_normal(count, dtype=np.float32) * np.float32(2e-4)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def job_of(name: str, count: int) -> Any:
    from raymerge.checkpoint.nouns import SourceFile, TensorRef, TensorSpec
    from raymerge.dtypes import DType
    from raymerge.methods import method
    from raymerge.methods.declaration import Base
    from raymerge.planning.nouns import JobInput, TensorJob

    declared = method(name)
    file = SourceFile(url="/nowhere", nbytes=0, version="", identity="")
    spec = TensorSpec(name="w", dtype=DType.BF16, shape=ELEMENTS)
    refs = [TensorRef(spec=spec, file=file, offset=index) for index in range(count + 1)]
    values = {each.name: SETTINGS.get(each.name, each.default) for each in declared.parameters}
    own = {each.name: values[each.name] for each in declared.parameters if each.per_input}
    apart = declared.base in (Base.REQUIRED, Base.OPTIONAL)
    return TensorJob(
        output=spec,
        method=name,
        inputs=tuple(JobInput(ref=ref, parameters=own) for ref in refs[1:]),
        base=refs[0] if apart else None,
        parameters={name: value for name, value in values.items() if name not in own},
        slots=tuple(range(count)),
    )


def merge_cost(name: str) -> tuple[float, float]:
    """CPU seconds per GB of input, and their spread, merging three models (or as many as the method takes)."""
    from raymerge.compute.operations import open_operations
    from raymerge.merging.tensor import merge_held, whole
    from raymerge.methods import method
    from raymerge.planning.memory import BLOCK_ELEMENTS

    count = min(3, method(name).max_inputs or 3)
    job = job_of(name, count)
    raw = [noise(ELEMENTS[0] * ELEMENTS[1], index) for index, _ in enumerate(job.refs)]
    out = np.empty(job.output.nbytes, np.uint8)
    operations = open_operations()
    seconds, spread = measured(lambda: merge_held(job, raw, whole(job, out), operations, BLOCK_ELEMENTS))
    return seconds / (sum(each.nbytes for each in raw) / GB), spread


def transfer_costs(folder: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """CPU seconds of this process per GB read from and written to an object store, and their spreads."""
    from raymerge.storage import join_url, store_for

    nbytes = 512 << 20
    url = join_url(folder, "object")
    store = store_for(url)
    data = np.tile(noise(1 << 20, 0), nbytes >> 21)
    version = ""

    def write() -> None:
        nonlocal version
        with store.create(url, nbytes=nbytes) as writer:
            for start in range(0, nbytes, 64 << 20):
                writer.write(data[start : start + (64 << 20)])
            version = writer.commit().version

    written = measured(write)
    buffer = np.empty(nbytes, np.uint8)
    read = measured(lambda: store.read_into(url, buffer, offset=0, version=version))
    return (read[0] / (nbytes / GB), read[1]), (written[0] / (nbytes / GB), written[1])


def whole_merge(method: str, models: str, folder: str) -> tuple[float, int, int]:
    """CPU seconds of a merge between objects in this process, and the bytes that it read and wrote."""
    import raymerge
    from raymerge.storage import traffic

    out = f"{folder}/out-{method}-{time.monotonic_ns()}"
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": f"{models}/base",
        "models": [{"model": f"{models}/{name}"} for name in (["base", "a"] if method == "slerp" else "abc")],
        "parameters": {key: SETTINGS[key] for key in (("t",) if method == "slerp" else ("weight", "density"))},
    }
    if method == "linear":
        del recipe["base_model"], recipe["parameters"]["density"]
    before, moved = cpu_seconds(), traffic()
    raymerge.merge(recipe, out, executor="inline", task_cpus=1, out_shard_size="256MB")
    after = traffic()
    seconds = cpu_seconds() - before
    return seconds, after.read_bytes - moved.read_bytes, after.written_bytes - moved.written_bytes


def upload(folder: Path, url: str) -> None:
    from raymerge.storage import join_url, store_for

    for path in sorted(folder.iterdir()):
        store_for(url).put(join_url(url, path.name), path.read_bytes())


@contextmanager
def object_store() -> Iterator[str]:
    from s3_server import s3_env, start_s3

    with tempfile.TemporaryDirectory() as folder, start_s3(Path(folder)) as server, s3_env(server):
        yield server.folder()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def calibrate() -> dict[str, Any]:
    from raymerge.methods import all_methods

    merging = {}
    for name in all_methods():
        merging[name] = merge_cost(name)
        print(f"{name:18} {merging[name][0]:6.2f} CPU s per GB read, spread {merging[name][1]:.0%}", flush=True)
    with object_store() as folder:
        alone, written = transfer_costs(folder)
        print(f"reading alone {alone[0]:.2f}, writing {written[0]:.2f} CPU s per GB", flush=True)
        whole = whole_merges(folder)
        light = {method: whole(method) for method in ("slerp", "linear", "task_arithmetic")}
        moved = np.array([[read_gb, written_gb] for _, read_gb, written_gb in light.values()])
        beyond = np.array([seconds - merging[name][0] * read_gb for name, (seconds, read_gb, _) in light.items()])
        read, write = np.maximum(np.linalg.lstsq(moved, beyond, rcond=None)[0], (alone[0], 0.0)).tolist()
        print(f"in a merge, reading {read:.2f} and writing {write:.2f} CPU s per GB", flush=True)
        error = 0.0
        for method in (*light, "ties", "dare_ties", "della"):
            seconds, read_gb, written_gb = light[method] if method in light else whole(method)
            predicted = (merging[method][0] + read) * read_gb + write * written_gb
            error = max(error, abs(predicted / seconds - 1))
            print(f"{method:18} predicted {predicted:.2f} CPU s, measured {seconds:.2f}", flush=True)
    return {
        "date": dt.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores of {processor()} at load {os.getloadavg()[2]:.0f}",
        "merging": {name: round(cost, 2) for name, (cost, _) in merging.items()},
        "read": round(read, 2),
        "written": round(write, 2),
        "error": round(error, 2),
    }


def whole_merges(folder: str) -> Callable[[str], tuple[float, float, float]]:
    """A function that tells what whole merges by a method take between objects: CPU seconds, GB read, GB written.

    Of two model sizes the difference counts: what every run takes, whatever its size, drops out.
    """
    for name, shape in (("small", SMALL), ("large", LARGE)):
        with tempfile.TemporaryDirectory() as local:
            for path in make_checkpoints(Path(local), shape, fine_tunes=3, seed=0, threads=2):
                upload(path, f"{folder}/{name}/{path.name}")

    def difference(method: str) -> tuple[float, float, float]:
        whole_merge(method, f"{folder}/small", folder)
        found = []
        for _ in range(REPEATS):
            small = whole_merge(method, f"{folder}/small", folder)
            large = whole_merge(method, f"{folder}/large", folder)
            found.append(tuple(more - less for more, less in zip(large, small, strict=True)))
        seconds, read, written = (statistics.median(column) for column in zip(*found, strict=True))
        return seconds, read / GB, written / GB

    return difference


TEMPLATE = '''"""CPU seconds per gigabyte, measured by benchmarks/calibrate.py; do not edit."""

from __future__ import annotations

MEASURED_ON = "{date}"
MACHINE = "{machine}"
# The largest relative difference between these parts, added up, and whole merges between objects on loopback.
ERROR = {error}
READ_SECONDS_PER_GB = {read}
WRITE_SECONDS_PER_GB = {written}
# By method: three models (two, one, where it takes no more) and the base where it has one, per GB of bfloat16 read.
MERGE_SECONDS_PER_GB = {{
{merging}
}}
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the Python file to write")
    arguments = parser.parse_args()
    found = calibrate()
    merging = "\n".join(f'    "{name}": {cost},' for name, cost in found["merging"].items())
    text = TEMPLATE.format(**{**found, "merging": merging})
    if arguments.write:
        arguments.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
