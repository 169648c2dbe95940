"""What a shard task needs in memory: a pure sum with each term named, and which tensors must stream to fit."""

from __future__ import annotations

from dataclasses import dataclass

from raymerge.dtypes import DType
from raymerge.errors import Problem
from raymerge.planning.nouns import MemoryProjection, TensorJob

MIB = 1 << 20

# Blocks of 128K float32 elements lie in the second-level cache beside their scratch.
BLOCK_ELEMENTS = 128 * 1024
# A streamed tensor moves through windows of this many elements: 16 MiB of bfloat16 keeps range requests long.
WINDOW_ELEMENTS = 8 * 1024 * 1024
# Arrays of one block that a method may hold beside its inputs: deltas, masks, sums, random words, in float64 at worst.
_SCRATCH_BLOCKS_PER_INPUT = 3
_SCRATCH_BLOCKS = 16
# Receipts, headers, thread stacks and allocator slack, measured on shards of one small tensor.
_FIXED_BYTES = 24 * MIB

# With the baseline of a worker this stays below 1.2 GB, a share that small nodes have per core.
DEFAULT_TASK_MEMORY_BYTES = 768 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRules:
    """`budget_bytes` caps a task; `threads` merge tensors in it at once; `upload_bytes` is what the writer buffers."""

    budget_bytes: int = DEFAULT_TASK_MEMORY_BYTES
    threads: int = 1
    upload_bytes: int = 0


def held_bytes(job: TensorJob) -> int:
    """Memory of a job whose tensors lie in memory whole: every input and the output."""
    return job.read_bytes + job.output.nbytes


def row_elements(job: TensorJob) -> int:
    return job.output.shape[-1] if job.output.shape else 1


def window_elements(job: TensorJob, room_bytes: int) -> int:
    """Elements per window of a streamed job: whole blocks and rows, two windows of every input within `room_bytes`."""
    unit = max(BLOCK_ELEMENTS, row_elements(job))
    per_element = sum(2 * ref.spec.dtype.bits // 8 for ref in job.refs) + job.output.dtype.bits // 8
    fitting = room_bytes // per_element // unit * unit
    return max(unit, min(fitting, max(unit, WINDOW_ELEMENTS // unit * unit)))


def streamed_bytes(job: TensorJob, room_bytes: int) -> int:
    """Memory of a job that streams: two windows of every input (one merging, one arriving) and one of output."""
    per_element = sum(2 * ref.spec.dtype.bits // 8 for ref in job.refs) + job.output.dtype.bits // 8
    return window_elements(job, room_bytes) * per_element


def scratch_bytes(jobs: tuple[TensorJob, ...], threads: int) -> int:
    """Blocks in flight: float32 copies of every input, deltas, sums and masks, for each merging thread."""
    worst = 0
    for job in jobs:
        width = 8 if any(ref.spec.dtype is DType.F64 for ref in job.refs) else 4
        block = max(BLOCK_ELEMENTS, row_elements(job) if len(job.output.shape) > 0 else 1)
        block = min(block, max(job.output.element_count, 1))
        worst = max(worst, width * block * (_SCRATCH_BLOCKS_PER_INPUT * len(job.refs) + _SCRATCH_BLOCKS))
    return worst * threads + _FIXED_BYTES


def room_bytes(jobs: tuple[TensorJob, ...], rules: MemoryRules) -> int:
    """What is left of the budget for tensors, once scratch and the writer's buffers are set aside."""
    return rules.budget_bytes - scratch_bytes(jobs, rules.threads) - rules.upload_bytes


def is_held(job: TensorJob, room: int) -> bool:
    """Whether a job's tensors lie in memory whole; copies never do."""
    return job.method != "copy" and held_bytes(job) <= room


def project(jobs: tuple[TensorJob, ...], rules: MemoryRules) -> MemoryProjection:
    """The projection of one shard task. May exceed the budget: `too_small` says for which tensor."""
    scratch = scratch_bytes(jobs, rules.threads)
    room = room_bytes(jobs, rules)
    merging = [job for job in jobs if job.method != "copy"]
    held = [job for job in merging if is_held(job, room)]
    streamed = max((streamed_bytes(job, room) for job in merging if not is_held(job, room)), default=0)
    in_flight = min(room, sum(held_bytes(job) for job in held))
    if streamed >= in_flight:  # a streamed tensor has the memory to itself
        inputs, output, prefetch = streamed, 0, 0
    else:
        inputs = max(job.read_bytes for job in held)
        output = max(job.output.nbytes for job in held)
        prefetch = max(0, in_flight - inputs - output)
    return MemoryProjection(
        inputs_bytes=inputs,
        prefetch_bytes=prefetch,
        scratch_bytes=scratch,
        output_bytes=output,
        upload_bytes=rules.upload_bytes,
    )


def too_small(jobs: tuple[TensorJob, ...], rules: MemoryRules) -> Problem | None:
    """A problem naming the tensor that fits in no way, how much it needs, and what to set."""
    projection = project(jobs, rules)
    if projection.total_bytes <= rules.budget_bytes:
        return None
    worst = max(jobs, key=lambda job: streamed_bytes(job, 0) if job.method != "copy" else 0)
    needed = -(-projection.total_bytes // MIB)
    return Problem(
        subject=worst.output.name,
        message=f"needs {needed} MiB even when streamed, the task memory is {rules.budget_bytes // MIB} MiB",
        remedy=f"set --task-memory {needed}MiB or more",
    )
