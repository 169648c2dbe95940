"""What a store copies by itself follows from headers alone, and the tensor order keeps ranges long."""

from __future__ import annotations

import dataclasses
from io import StringIO
from itertools import pairwise

import pytest
import yaml
from hub_layout import LLAMA_70B, hub_checkpoint, llama_shapes_in_model_order
from planning import plan_of
from rich.console import Console

from raymerge.cli.commands.plan import store_movement
from raymerge.cli.screens.plan import Surroundings, plan_screen, plan_values
from raymerge.dtypes import DType
from raymerge.planning.copies import copy_ranges, movement, needs_no_worker, shard_pieces
from raymerge.planning.nouns import Plan
from raymerge.storage import CopyRange, store_for

GB = 10**9
S3 = store_for("s3://bucket")
SHAPES = llama_shapes_in_model_order(**LLAMA_70B)
NARROW = llama_shapes_in_model_order(layers=24, hidden=64, inner=96, vocab=128, kv=32)


def stacked(*slices: tuple[str, int, int], dtype: str | None = None) -> str:
    each = [{"sources": [{"model": model, "layer_range": [first, end]}]} for model, first, end in slices]
    return yaml.safe_dump({"merge_method": "passthrough", "slices": each} | ({"dtype": dtype} if dtype else {}))


# Two 70B models, every second stretch of 20 layers from the other: 140 layers, 122 B parameters.
FRANKENMERGE = stacked(*(("AB"[i % 2], 10 * i, 10 * i + 20) for i in range(7)))


def frankenmerge(*, file_bytes: int, shard_bytes: int = 2 * GB, dtypes: dict[str, DType] | None = None) -> Plan:
    models = [hub_checkpoint(name, SHAPES, file_bytes=file_bytes, dtypes=dtypes) for name in "AB"]
    return plan_of(FRANKENMERGE, *models, shard_bytes=shard_bytes)


@pytest.mark.parametrize("norms", [DType.BF16, DType.F32])
@pytest.mark.parametrize("file_bytes", [2 * GB, 5 * GB, 10 * GB, 10**12])
def test_a_120b_frankenmerge_is_copied_inside_the_store(file_bytes: int, norms: DType, capsys) -> None:
    dtypes = {name: norms for name in SHAPES if "norm" in name}
    plan = frankenmerge(file_bytes=file_bytes, dtypes=dtypes)
    moved = movement(plan.shards, S3)
    assert plan.layer_count == 140
    assert moved.output_bytes > 240 * GB
    assert moved.copied_share >= 0.99
    assert all(needs_no_worker(shard, S3) for shard in plan.shards)
    if (file_bytes, norms) != (5 * GB, DType.BF16):
        return
    with capsys.disabled():
        print(  # noqa: T201 (a figure to be read)
            f"\n120B from files of {file_bytes / GB:.0f} GB, {norms.value} norms: {len(plan.shards)} shards, "
            f"{moved.copied_bytes:,} of {moved.output_bytes:,} bytes copied in the store "
            f"({100 * moved.copied_share:.3f}%), {moved.read_bytes:,} read, {moved.written_bytes:,} written"
        )


def test_ranges_are_as_long_as_files_and_shards_allow() -> None:
    """A layer is one range, but where a file of its model ends inside it, or an element type is wider."""
    plan = frankenmerge(file_bytes=5 * GB)
    files_cut = {
        ref.file.url
        for shard in plan.shards
        for before, ref in pairwise(job.inputs[0].ref for job in shard.jobs)
        if before.file.url != ref.file.url
    }
    ranges = [each for shard in plan.shards for each in copy_ranges(shard.jobs)]
    assert len(ranges) <= len(plan.shards) + 3 * len(files_cut)  # a cut layer of A and of B may be used twice
    assert sum(each.nbytes for each in ranges) == plan.output_bytes


def test_layers_follow_their_number_not_the_alphabet() -> None:
    """A file holds layer 10 before layer 2; the output does not, and its layers are whole ranges nevertheless."""
    plan = plan_of(stacked(("A", 0, 24)), hub_checkpoint("A", NARROW, file_bytes=10**12))
    layers = [int(job.output.name.split(".")[2]) for job in plan.shards[0].jobs if ".layers." in job.output.name]
    assert layers == sorted(layers)
    offsets = [job.inputs[0].ref.offset for job in plan.shards[0].jobs]
    assert offsets != sorted(offsets)
    # Six stretches of the file: the embedding; layers 0 and 1; 2; 3 to 9; 10 to 19 and 20 to 23; the norm; the head.
    assert len(list(copy_ranges(plan.shards[0].jobs))) <= 12


def test_the_order_knows_no_destination() -> None:
    plan = frankenmerge(file_bytes=5 * GB)
    local = [hub_checkpoint(name, SHAPES, file_bytes=5 * GB, scheme="hf") for name in "AB"]
    other = plan_of(FRANKENMERGE, *local, shard_bytes=2 * GB)
    names = [[job.output.name for job in shard.jobs] for shard in plan.shards]
    assert names == [[job.output.name for job in shard.jobs] for shard in other.shards]
    assert plan.digest == other.digest


def test_only_the_store_that_holds_the_inputs_copies() -> None:
    plan = frankenmerge(file_bytes=5 * GB)
    for out in ("/disk", "gs://bucket", "hf://org/name"):
        moved = movement(plan.shards, store_for(out))
        assert (moved.copied_bytes, moved.read_bytes, moved.written_bytes) == (0, plan.read_bytes, moved.output_bytes)


def test_a_converted_tensor_needs_a_worker_and_its_neighbours_none() -> None:
    dtypes = {name: DType.F32 for name in NARROW if name.startswith("model.layers.3.")}
    model = hub_checkpoint("A", NARROW, file_bytes=10**12, dtypes=dtypes)
    plan = plan_of(stacked(("A", 0, 24), dtype="bfloat16"), model, shard_bytes=60_000)
    workers = [shard for shard in plan.shards if not needs_no_worker(shard, S3)]
    assert {job.output.name.split(".")[2] for shard in workers for job in shard.jobs if job.method != "copy"} == {"3"}
    assert 0 < len(workers) < len(plan.shards)


def test_pieces_are_the_file() -> None:
    model = hub_checkpoint("A", NARROW | {"empty": (0, 64)}, file_bytes=10**12)
    plan = plan_of(stacked(("A", 0, 24)), model)
    header, *rest = shard_pieces(plan.shards[0])
    assert isinstance(header, int)
    assert all(isinstance(piece, CopyRange) and piece.nbytes for piece in rest)
    assert sum(piece.nbytes for piece in rest if isinstance(piece, CopyRange)) == plan.output_bytes
    moved = movement(plan.shards, S3)  # smaller than a part: one put
    assert (moved.copied_bytes, moved.written_bytes) == (0, header + plan.output_bytes)
    assert dataclasses.replace(moved, output_bytes=0).copied_share == 0.0


def test_the_plan_says_what_is_copied_and_what_moves() -> None:
    plan = frankenmerge(file_bytes=5 * GB)
    moved = movement(plan.shards, S3)
    around = Surroundings(seconds=0.1, out="s3://bucket/out", movement=moved)
    console = Console(file=StringIO(), width=100)
    console.print(plan_screen(plan, around))
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "copies 243 GB inside the store (99.69%) writes 744 MB" in text
    assert "reads 744 MB, 7.4 s at 100 MB/s" in text
    values = plan_values(plan, around)["movement"]
    assert values["copied_bytes"] + values["written_bytes"] == moved.output_bytes
    assert values["copied_share"] == moved.copied_share


def test_on_a_disk_nothing_is_said_of_a_store() -> None:
    console = Console(file=StringIO(), width=100)
    console.print(plan_screen(frankenmerge(file_bytes=5 * GB), Surroundings(seconds=0.1, out="/disk/out")))
    assert "inside the store" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert store_movement(frankenmerge(file_bytes=5 * GB), "/disk/out") is None
