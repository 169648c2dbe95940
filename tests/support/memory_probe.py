"""Peaks of shard tasks, measured in a process of their own: `python memory_probe.py FOLDER` reads cases from stdin.

A case names a method, its parameters, tensors and budget. The process first runs every method on something small, so
that imports and compiled kernels are in the baseline; what a task takes above it is what its projection promises to
bound. The baseline is measured once: what one task leaves behind counts against the next.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`shapes` are the shard's tensors, `copies` of each; `method` merges `count` inputs, and a base if `base`.

    `room_bytes` is what the budget leaves for tensors once scratch and the like are set aside. Where the case is
    `cold`, local inputs are dropped from the page cache first, so that they are read and not lent.
    """

    method: str
    shapes: tuple[tuple[int, ...], ...]
    room_bytes: int
    count: int = 2
    base: bool = False
    shared: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "BF16"
    out_dtype: str = ""
    threads: int = 1
    copies: int = 1
    repeats: int = 1
    cold: bool = False

    @property
    def name(self) -> str:
        shapes = "+".join("x".join(map(str, shape)) for shape in self.shapes) + f" x{self.copies}"
        parts = (self.method, *(f"{key}={value}" for key, value in {**self.shared, **self.each}.items()))
        return (
            f"{' '.join(parts)} {self.dtype} {shapes} {self.room_bytes // MIB}MiB {self.threads}t{' cold' * self.cold}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes. `peak` is the task's highest above the baseline, `held` and `streamed` count its tensors."""

    name: str
    baseline: int
    peak: int
    projected: int
    budget: int
    held: int
    streamed: int
    terms: Mapping[str, int]

    @property
    def holds(self) -> bool:
        return 0 < self.peak < self.projected


def measure(cases: Sequence[Case], folder: Path | str, *, timeout_seconds: float = 240) -> list[Measured]:
    """Run cases one after the other in one fresh process; again if it had to compile kernels, which takes memory."""
    from raymerge.running import WORKER_BASELINE_BYTES

    text = json.dumps([asdict(case) for case in cases])
    command = [sys.executable, __file__, str(folder)]
    found: list[Measured] = []
    for _ in range(2):
        answer = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=timeout_seconds
        )
        assert answer.returncode == 0, answer.stderr
        found = [Measured(**values) for values in json.loads(answer.stdout)]
        if all(each.baseline <= WORKER_BASELINE_BYTES for each in found):
            break
    return found


def _main(text: str, folder: Path | str) -> None:
    cases = [Case(**{**each, "shapes": tuple(map(tuple, each["shapes"]))}) for each in json.loads(text)]
    for case in cases:
        _run(_small(case), folder, 0)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    baseline = status_bytes("VmRSS")
    print(json.dumps([asdict(_run(case, folder, baseline)) for case in cases]))  # noqa: T201


def _small(case: Case) -> Case:
    """The same code on little data: one tensor that is held, one that streams."""
    return replace(case, shapes=((64, 300), (1200, 1000)), room_bytes=0, copies=1, repeats=1)


def _run(case: Case, folder: Path | str, baseline: int) -> Measured:
    from raymerge.merging.nouns import ShardOptions
    from raymerge.merging.shard import run_shard
    from raymerge.planning.memory import MemoryRules, is_held, project, room_bytes
    from raymerge.planning.nouns import ShardTask
    from raymerge.storage import join_url, store_for

    jobs = tuple(_jobs(case, folder))
    nbytes = sum(job.output.nbytes for job in jobs)
    upload = store_for(str(folder)).buffered_bytes(nbytes)
    own = -room_bytes(jobs, MemoryRules(budget_bytes=0, threads=case.threads, upload_bytes=upload))
    least = project(jobs, MemoryRules(budget_bytes=own, threads=case.threads, upload_bytes=upload)).total_bytes
    rules = MemoryRules(budget_bytes=max(own + case.room_bytes, least), threads=case.threads, upload_bytes=upload)
    memory = project(jobs, rules)
    assert memory.total_bytes <= rules.budget_bytes
    task = ShardTask(file_name="out.safetensors", jobs=jobs, plan_digest="0" * 64, memory=memory)
    options = ShardOptions(out=str(folder), memory=rules)
    from page_cache import forget

    peak = 0
    for _ in range(case.repeats):
        for noise in Path(folder).glob("*.noise") if case.cold else ():
            forget(noise)
        peak = max(peak, run_shard(task, options).peak_bytes)
    store_for(str(folder)).delete(join_url(str(folder), "out.safetensors"))
    room = room_bytes(jobs, rules)
    held = sum(is_held(job, room) for job in jobs)
    return Measured(
        name=case.name,
        baseline=baseline,
        peak=peak - baseline,
        projected=task.projected_bytes,
        budget=rules.budget_bytes,
        held=held,
        streamed=len(jobs) - held,
        terms=asdict(memory),
    )


def _jobs(case: Case, folder: Path | str) -> Any:
    from raymerge.checkpoint.nouns import TensorSpec
    from raymerge.dtypes import DType
    from raymerge.methods import method
    from raymerge.planning.nouns import JobInput, TensorJob

    out = DType(case.out_dtype or case.dtype)
    for number, shape in enumerate(shape for shape in case.shapes for _ in range(case.copies)):
        refs = [_ref(case, folder, index, shape) for index in range(case.count + case.base)]
        if case.method == "copy":
            inputs = (JobInput(ref=refs[0]),)
            yield TensorJob(output=replace(refs[0].spec, name=f"w{number}"), method="copy", inputs=inputs)
            continue
        declared = method(case.method).parameters
        shared = {each.name: case.shared.get(each.name, each.default) for each in declared if not each.per_input}
        own = {each.name: case.each.get(each.name, each.default) for each in declared if each.per_input}
        yield TensorJob(
            output=TensorSpec(name=f"w{number}", dtype=out, shape=shape),
            method=case.method,
            inputs=tuple(JobInput(ref=ref, parameters=own) for ref in refs[case.base :]),
            base=refs[0] if case.base else None,
            parameters=shared,
            slots=tuple(range(case.count)),
        )


def _ref(case: Case, folder: Path | str, index: int, shape: tuple[int, ...]) -> Any:
    """The start of a file of noise, one for each input: numbers of 0.02 that differ by a hundredth of that."""
    from raymerge.checkpoint.nouns import SourceFile, TensorRef, TensorSpec
    from raymerge.dtypes import DType
    from raymerge.errors import NotFoundError
    from raymerge.storage import join_url, store_for

    spec = TensorSpec(name="w", dtype=DType(case.dtype), shape=shape)
    url = join_url(str(folder), f"{case.dtype}-{index}.noise")
    nbytes = max(prod(each) for each in case.shapes) * spec.dtype.bits // 8
    try:
        info = store_for(url).info(url)
    except NotFoundError:
        info = None
    if info is None or info.nbytes < nbytes:
        info = _write_noise(url, nbytes, case.dtype, seed=index)
    file = SourceFile(url=url, nbytes=info.nbytes, version=info.version, identity=url)
    return TensorRef(spec=spec, file=file, offset=0)


def _write_noise(url: str, nbytes: int, code: str, *, seed: int) -> Any:
    import numpy as np

    from raymerge.storage import store_for

    values = np.random.default_rng(0).standard_normal(MIB, dtype=np.float32) * np.float32(0.02)
    values += np.random.default_rng(seed + 1).standard_normal(MIB, dtype=np.float32) * np.float32(2e-4)
    if code == "BF16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[code])
    block = stored.tobytes()
    with store_for(url).create(url, nbytes=nbytes) as writer:
        for start in range(0, nbytes, len(block)):
            writer.write(block[: nbytes - start])
        return writer.commit()


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


if __name__ == "__main__":
    _main(sys.stdin.read(), sys.argv[1])
