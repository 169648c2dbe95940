"""How a shard is read: small neighbours by one request, large tensors by several, all of it ahead of its merge."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import write_llama
from fault_proxy import start_proxy
from hub_layout import hub_checkpoint, llama_shapes_in_model_order
from planning import plan_of
from s3_server import S3Server, s3_env

import raymerge
from raymerge.events import Event, RunStarted
from raymerge.merging import schedule as schedules
from raymerge.merging.schedule import Batch, Chunk, Copy, EarlyStart, Stream, early_start, schedule
from raymerge.planning.memory import CHUNK_BYTES, MOVED_BYTES, MemoryRules, held_bytes
from raymerge.planning.nouns import Plan
from raymerge.storage import store_for, traffic, transfer
from raymerge.storage.s3 import S3Store

MIB = 1 << 20
ROOM = 600 * MIB
S3 = store_for("s3://bucket")
# The widths of a 1.1B model: matrices of 1, 8 and 23 MB, and norms of 4 KB.
SHAPES = llama_shapes_in_model_order(layers=6, hidden=2048, inner=5632, vocab=32000, kv=256)
LINEAR = yaml.safe_dump(
    {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 0.5}} for name in "AB"]}
)


def linear_plan(scheme: str = "s3") -> Plan:
    models = [hub_checkpoint(name, SHAPES, file_bytes=10**12, scheme=scheme) for name in "AB"]
    return plan_of(LINEAR, *models)


def steps_of(plan: Plan, room: int = ROOM, *, copies: bool = False) -> list[Any]:
    return [step for shard in plan.shards for step in schedule(shard.jobs, room, lambda _: copies)]


def test_every_job_is_done_once_in_file_order() -> None:
    plan = linear_plan()
    jobs = [job for shard in plan.shards for job in shard.jobs]
    for room in (ROOM, 100 * MIB, 20 * MIB, 0):
        done = []
        for step in steps_of(plan, room):
            done += step.jobs if isinstance(step, Batch) else [step.job]
        assert done == jobs


def test_a_batch_holds_what_its_jobs_read_and_fits_its_share_of_the_room() -> None:
    for step in steps_of(linear_plan()):
        assert isinstance(step, Batch)
        assert step.held_bytes == sum(held_bytes(job) for job in step.jobs)
        assert len(step.jobs) == 1 or step.held_bytes <= ROOM // 4
        for job in step.jobs:
            for ref in job.refs:
                position, start = step.places[ref.key]
                run = step.runs[position]
                assert (run.file, run.offset + start) == (ref.file, ref.offset)
                assert start + ref.nbytes <= run.nbytes


def test_a_layer_takes_few_requests_of_8_to_25_mb() -> None:
    plan = linear_plan()
    runs = [run for step in steps_of(plan) for run in step.runs]
    sizes = [end - start for run in runs for start, end in transfer.near_split(run.nbytes, transfer.PART_BYTES)]
    assert sum(sizes) == plan.read_bytes
    assert max(sizes) <= 25.2e6
    small = [size for size in sizes if size < 8 * MIB]
    assert len(small) <= 2  # of each input at most what is left at the end of a stretch
    assert len(sizes) <= plan.read_bytes / 16e6 + 4


def test_one_tensor_that_two_inputs_share_is_read_once() -> None:
    model = hub_checkpoint("A", SHAPES, file_bytes=10**12)
    same = [{"sources": [{"model": "A", "layer_range": [0, 6]}] * 2, "parameters": {"t": 0.5}}]
    recipe = yaml.safe_dump({"merge_method": "slerp", "base_model": "A", "slices": same})
    plan = plan_of(recipe, model)
    assert sum(run.nbytes for step in steps_of(plan) for run in step.runs) == model.nbytes


def test_on_a_disk_every_job_is_a_batch_of_its_own() -> None:
    plan = linear_plan(scheme="file")
    model = plan.models[0]
    assert model.url.startswith("file://")
    steps = steps_of(plan)
    assert all(isinstance(step, Batch) and len(step.jobs) == 1 for step in steps)


@pytest.mark.parametrize(("threads", "sizes", "first", "left"), [
    (2, [4, 1, 1, 1, 1, 9], 5, 6),  # as soon as the others together take no longer, and half as long again
    (2, [3, 3, 3, 3, 3, 9], 5, 5),
    (3, [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 9], 10, 10),
    (2, [8, 8, 1, 1, 1, 4], 5, 4),
    (3, [8, 8, 1, 1, 1, 4], 5, 4),
    (2, [1, 1, 9, 1, 1], 2, 5),  # it need not be the last
    (2, [9, 1, 1], None, 0), (2, [2, 2, 2], None, 0), (1, [1, 1, 9], None, 0), (2, [], None, 0),
])  # fmt: skip
def test_what_would_end_alone_begins_early(threads: int, sizes: list[int], first: int | None, left: int) -> None:
    run = next(run for step in steps_of(linear_plan()) for run in step.runs)
    steps = [Batch(jobs=(), runs=(replace(run, nbytes=size),), places={}) for size in sizes]
    found = early_start(steps, threads)
    expected = None if first is None else EarlyStart(batch=steps[first], left=left)
    assert found == expected
    assert found is None or found.batch is steps[first or 0]


def test_nothing_begins_before_what_streams_or_is_copied() -> None:
    large, *_, small = sorted(steps_of(linear_plan()), key=lambda step: step.held_bytes, reverse=True)
    for other in (Copy(ranges=()), Stream(job=large.jobs[0])):
        assert early_start([other, small, large], 2) == EarlyStart(batch=large, left=2)
        assert early_start([small, other, large], 2) is None


def test_copies_are_ranges_or_chunks_by_where_they_go() -> None:
    slices = [{"sources": [{"model": "A", "layer_range": [0, 6]}]}]
    recipe = yaml.safe_dump({"merge_method": "passthrough", "slices": slices})
    plan = plan_of(recipe, hub_checkpoint("A", SHAPES, file_bytes=10**12))
    (copy,) = steps_of(plan, copies=True)
    assert isinstance(copy, Copy)
    chunks = steps_of(plan)
    assert all(isinstance(step, Chunk) and 0 < step.source.nbytes <= CHUNK_BYTES for step in chunks)
    assert sum(step.source.nbytes for step in chunks) == sum(each.nbytes for each in copy.ranges) == plan.output_bytes


def test_what_is_too_large_streams() -> None:
    streams = {step.job.output.name for step in steps_of(linear_plan(), 60 * MIB) if isinstance(step, Stream)}
    assert {"lm_head.weight", "model.layers.0.mlp.up_proj.weight"} <= streams
    assert "model.layers.0.self_attn.q_proj.weight" not in streams


# Everything a quarter as wide: 1 MiB stands for 16.
QUARTER: dict[str, Any] = {
    "layers": 6, "hidden": 512, "heads": 8, "kv_heads": 2, "vocab": 2048, "intermediate": 1408,
}  # fmt: skip


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", MIB)
    monkeypatch.setattr(schedules, "_ENOUGH_BYTES", MIB // 2)
    monkeypatch.setattr(schedules, "_MOST_BYTES", MIB * 3 // 2)


@pytest.fixture
def models(s3: S3Server, tmp_path: Path) -> str:
    root = s3.folder()
    for seed, name in enumerate("abc"):
        for path in write_llama(tmp_path / name, seed=seed, **QUARTER).iterdir():
            store_for(root).put(f"{root}/{name}/{path.name}", path.read_bytes())
    return root


@pytest.mark.usefixtures("small_requests")
def test_requests_that_a_store_sees(s3: S3Server, models: str, tmp_path: Path, capsys) -> None:
    """Reading takes about bytes / 16 MB requests and a few more for every layer."""
    weights = [{"model": f"{models}/{name}", "parameters": {"weight": 0.3}} for name in "abc"]
    recipe = {"merge_method": "linear", "models": weights}
    planned = raymerge.plan(recipe)
    with start_proxy(s3.endpoint) as proxy, s3_env(s3, AWS_ENDPOINT_URL=proxy.endpoint):

        def watch(event: Event) -> None:
            if isinstance(event, RunStarted):
                proxy.reset_counts()

        raymerge.merge(recipe, tmp_path / "out", executor="inline", on_event=watch)
        requests, nbytes = proxy.requests["GET"], proxy.bytes_down
    tensors = sum(len(job.refs) for shard in planned.shards for job in shard.jobs)
    assert nbytes == planned.read_bytes
    with capsys.disabled():
        print(  # noqa: T201 (a figure to be read)
            f"\n{tensors} tensors, {nbytes / MIB:.1f} parts of reading: {requests} requests, "
            f"{nbytes / requests / MIB * 16:.1f} MiB each at full width"
        )
    assert requests <= nbytes / MIB + len(weights)
    assert requests < tensors / 2


def test_chunks_from_another_store_arrive_side_by_side_within_bounds(
    s3: S3Server, models: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "CHUNK_BYTES", MIB)
    monkeypatch.setattr("raymerge.merging.shard.MOVED_BYTES", 4 * MIB)
    read_into, lock = S3Store.read_into, threading.Lock()
    running: list[int] = []
    peaks: list[int] = []

    def slow(self: S3Store, url: str, buffer: Any, *, offset: int, version: str) -> None:
        with lock:
            running.append(len(buffer))
            peaks.append(len(running))
        time.sleep(0.02)
        try:
            read_into(self, url, buffer, offset=offset, version=version)
        finally:
            with lock:
                running.pop()

    slices = [{"sources": [{"model": f"{models}/{name}", "layer_range": [0, 6]}]} for name in "ab"]
    recipe = {"merge_method": "passthrough", "slices": slices}
    raymerge.plan(recipe)
    monkeypatch.setattr(S3Store, "read_into", slow)
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    assert 3 <= max(peaks) <= 4


def test_a_task_that_moves_copies_is_projected_to_hold_them() -> None:
    slices = [{"sources": [{"model": "A", "layer_range": [0, 6]}]}]
    recipe = yaml.safe_dump({"merge_method": "passthrough", "slices": slices})
    model = hub_checkpoint("A", SHAPES, file_bytes=10**12)
    (shard,) = plan_of(recipe, model, memory=MemoryRules(budget_bytes=512 * MIB)).shards
    assert shard.memory.inputs_bytes + shard.memory.prefetch_bytes == MOVED_BYTES
    tight = plan_of(recipe, model, memory=MemoryRules(budget_bytes=64 * MIB)).shards[0]
    assert tight.memory.total_bytes == 64 * MIB


@pytest.fixture(autouse=True)
def _no_retries() -> Iterator[None]:
    before = traffic()
    yield
    assert traffic().retries == before.retries
