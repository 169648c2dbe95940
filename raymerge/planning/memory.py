"""What a shard task needs in memory: a pure sum with each term named, and which tensors must stream to fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from raymerge.checkpoint.nouns import TensorRef
from raymerge.dtypes import DType
from raymerge.errors import Problem
from raymerge.methods import method as find_method
from raymerge.methods.declaration import Method, declared_method
from raymerge.planning.nouns import MemoryProjection, TensorJob

MIB = 1 << 20

# Blocks of 128K float32 elements lie in the second-level cache beside their scratch.
BLOCK_ELEMENTS = 128 * 1024
# What methods keep for each row of a block (its coefficients, its dot products) stays small beside the block itself.
BLOCK_ROWS = 4096
# A streamed tensor moves through windows of this many elements: 16 MiB of bfloat16 keeps range requests long.
WINDOW_ELEMENTS = 8 * 1024 * 1024
# Copies whose bytes come from another store are moved in chunks of this size, and so many bytes are under way at most.
CHUNK_BYTES = 16 * MIB
MOVED_BYTES = 8 * CHUNK_BYTES
# Arrays of one block that a method may hold beside its inputs: deltas, masks, sums, random words, in float64 at worst.
_SCRATCH_BLOCKS_PER_INPUT = 3
_SCRATCH_BLOCKS = 10
# A step's results are a block of their own, beside what they are made of; rows that are gathered are also copied as
# they are stored, as they are decoded, and added up in float64.
_STEP_BLOCKS = 2
_GATHER_BLOCKS = 8
# Thread stacks, the writer's own objects and allocator slack, measured on shards of one small tensor.
_FIXED_BYTES = 16 * MIB
# One job as objects in a worker, packed and unpacked, and its entry in the header while that is built: measured 2.5 KiB
# for four inputs.
_JOB_BYTES = 1024
_REF_BYTES = 512

FLOOR_BYTES = 128 * MIB
# With the baseline of a worker this stays below 1.2 GB, a share that small nodes have per core.
DEFAULT_TASK_MEMORY_BYTES = 768 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRules:
    """`budget_bytes` caps a task; `threads` merge tensors in it at once; `upload_bytes` is what the writer buffers."""

    budget_bytes: int = DEFAULT_TASK_MEMORY_BYTES
    threads: int = 1
    upload_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What one job takes: its tensors whole, one element of a window, the smallest window, and one thread's scratch.

    `side_bytes` is what of `read_bytes` the steps of its inputs need whole, `step_bytes` what they make of it,
    `window_extra_bytes` what packed units that windows cut add to those.
    """

    read_bytes: int
    output_bytes: int
    side_bytes: int
    step_bytes: int
    window_extra_bytes: int
    window_element_bytes: int
    least_window: int
    scratch_bytes: int

    @property
    def held_bytes(self) -> int:
        return self.read_bytes + self.output_bytes + self.step_bytes

    @property
    def streaming_bytes(self) -> int:
        """What a streamed job takes beside its windows."""
        return self.side_bytes + self.step_bytes + self.window_extra_bytes


def held_bytes(job: TensorJob) -> int:
    """Memory of a job whose tensors lie in memory whole: every input and the output."""
    return _cost(job).held_bytes


def read_held_bytes(job: TensorJob) -> int:
    """As held_bytes, without the output."""
    cost = _cost(job)
    return cost.read_bytes + cost.step_bytes


def step_bytes(job: TensorJob) -> int:
    """What the steps of the job's inputs hold, beside what they read."""
    return _cost(job).step_bytes


def side_bytes(job: TensorJob) -> int:
    """What the steps of the job's inputs read whole, even where its tensors stream."""
    return _cost(job).side_bytes


def needs_rows(job: TensorJob) -> bool:
    """Whether the job's blocks must hold whole rows."""
    return _method(job.method).needs_rows(job.parameters)


def block_elements(shape: Sequence[int], *, rows: bool, target: int = BLOCK_ELEMENTS) -> int:
    """Elements per block: `target`, or the whole rows that fit it, one at least and `BLOCK_ROWS` at most."""
    if not rows:
        return target
    row = max(1, shape[-1]) if shape else 1
    return row * max(1, min(target // row, BLOCK_ROWS))


def window_elements(job: TensorJob, room_bytes: int, *, rows: bool) -> int:
    """Elements per window of a streamed job: whole blocks, two windows of every input within `room_bytes`."""
    cost = _cost(job)
    room = room_bytes - cost.streaming_bytes
    most = max(cost.least_window, min(room // cost.window_element_bytes, WINDOW_ELEMENTS))
    unit = block_elements(job.output.shape, rows=rows)
    return most // unit * unit


Costs = Sequence[tuple[TensorJob, _Cost]]


def _scratch_bytes(costs: Costs, threads: int) -> int:
    """Blocks in flight: float32 copies of every input, deltas, sums and masks, for each merging thread."""
    return threads * max((cost.scratch_bytes for _, cost in costs), default=0)


def state_bytes(jobs: Sequence[TensorJob]) -> int:
    """The most that a method keeps through a tensor beside blocks; each merging thread has as much."""
    return max((_state(job) for job in jobs if job.method != "copy"), default=0)


def task_bytes(jobs: Sequence[TensorJob]) -> int:
    """The task itself: its description, the file's header, threads and slack."""
    return _FIXED_BYTES + sum(_JOB_BYTES + _REF_BYTES * len(job.inputs) for job in jobs)


def room_bytes(jobs: Sequence[TensorJob], rules: MemoryRules) -> int:
    """What is left of the budget for tensors, once everything else is set aside."""
    costs = _merging(jobs)
    own = _scratch_bytes(costs, rules.threads) + rules.threads * state_bytes(jobs) + task_bytes(jobs)
    return rules.budget_bytes - own - rules.upload_bytes


def is_held(job: TensorJob, room: int) -> bool:
    """Whether a job's tensors lie in memory whole; copies never do."""
    return job.method != "copy" and held_bytes(job) <= room


def project(jobs: Sequence[TensorJob], rules: MemoryRules) -> MemoryProjection:
    """The projection of one shard task. May exceed the budget: `too_small` says for which tensor."""
    costs = _merging(jobs)
    scratch, state, own = _scratch_bytes(costs, rules.threads), rules.threads * state_bytes(jobs), task_bytes(jobs)
    room = rules.budget_bytes - scratch - state - own - rules.upload_bytes
    held = [cost for _, cost in costs if cost.held_bytes <= room]
    streamed = max((_streamed_bytes(job, cost, room) for job, cost in costs if cost.held_bytes > room), default=0)
    moved = min(MOVED_BYTES, sum(job.output.nbytes for job in jobs if job.method == "copy"))  # if from another store
    in_flight = min(room, sum(cost.held_bytes for cost in held) + moved)
    if streamed >= in_flight:  # a streamed tensor has the memory to itself
        inputs, output, prefetch = streamed, 0, 0
    else:
        largest = max(held, key=lambda cost: cost.held_bytes, default=None)
        inputs = largest.read_bytes + largest.step_bytes if largest is not None else 0
        output = largest.output_bytes if largest is not None else 0
        prefetch = max(0, in_flight - inputs - output)
    return MemoryProjection(
        inputs_bytes=inputs,
        prefetch_bytes=prefetch,
        output_bytes=output,
        scratch_bytes=scratch,
        state_bytes=state,
        task_bytes=own,
        upload_bytes=rules.upload_bytes,
    )


def _merging(jobs: Sequence[TensorJob]) -> Costs:
    return [(job, _cost(job)) for job in jobs if job.method != "copy"]


def _streamed_bytes(job: TensorJob, cost: _Cost, room: int) -> int:
    """Two windows of every input (one merging, one arriving) and one of output."""
    windows = (window_elements(job, room, rows=rows) for rows in {False, needs_rows(job)})
    return max(windows) * cost.window_element_bytes + cost.streaming_bytes


def too_small(jobs: Sequence[TensorJob], memory: MemoryProjection, rules: MemoryRules) -> Problem | None:
    """A problem naming the tensor that fits in no way, how much it needs, and what to set; `memory` projects `jobs`."""
    if memory.total_bytes <= rules.budget_bytes:
        return None
    merging = [job for job in jobs if job.method != "copy"] or jobs
    worst = max(merging, key=lambda job: project((job,), MemoryRules(budget_bytes=0)).total_bytes)
    needed = -(-memory.total_bytes // MIB)
    return Problem(
        subject=worst.output.name,
        message=f"needs {needed} MiB even when streamed, the task memory is {rules.budget_bytes / MIB:.4g} MiB",
        remedy=f"set --task-memory {needed}MiB or more",
    )


def _method(name: str) -> Method:
    return declared_method(name) or find_method(name)


def _state(job: TensorJob) -> int:
    state = _method(job.method).state
    return 0 if state is None else state(job.output.shape, job.parameters, len(job.inputs))


@dataclass(frozen=True, slots=True)
class _Input:
    """What an input takes, as far as memory goes: `nbytes` is 0 where its bytes are another input's too."""

    is_wide: bool
    nbytes: int
    unit: tuple[int, int]
    side_bytes: int = 0
    step_bytes: int = 0
    extra_bytes: int = 0
    step_blocks: int = 0


def _cost(job: TensorJob) -> _Cost:
    refs, shared = job.refs, job.shared
    rows = needs_rows(job)
    if any(ref.steps for ref in refs):
        inputs = tuple([_input(ref, is_first=shared[i] == i) for i, ref in enumerate(refs)])
        return _cost_of(job.output.shape, job.output.dtype, inputs, rows=rows)
    dtypes = tuple([ref.spec.dtype for ref in refs])
    return _plain_cost(job.output.shape, job.output.dtype, dtypes, shared, rows)


@lru_cache(maxsize=4096)  # a checkpoint has few different shapes, however many tensors
def _plain_cost(
    shape: tuple[int, ...], dtype: DType, dtypes: tuple[DType, ...], shared: tuple[int, ...], rows: bool
) -> _Cost:
    """Of inputs that are stored as they are read."""
    count = prod(shape)
    inputs = [
        _Input(
            is_wide=each is DType.F64,
            nbytes=count * each.bits // 8 if shared[i] == i else 0,
            unit=(1, each.bits // 8) if shared[i] == i else (1, 0),
        )
        for i, each in enumerate(dtypes)
    ]
    return _cost_of(shape, dtype, tuple(inputs), rows=rows)


def _input(ref: TensorRef, *, is_first: bool) -> _Input:
    return _Input(
        is_wide=ref.spec.dtype is DType.F64,
        nbytes=ref.nbytes if is_first else 0,
        unit=ref.unit if is_first else (1, 0),
        side_bytes=sum([side.nbytes for side in ref.sides]),
        step_bytes=sum([step.held_bytes for step in ref.steps]),
        extra_bytes=ref.gather.extra_bytes if ref.gather is not None else 0,
        step_blocks=(_GATHER_BLOCKS if ref.gather is not None else _STEP_BLOCKS) if ref.steps else 0,
    )


@lru_cache(maxsize=4096)
def _cost_of(shape: tuple[int, ...], dtype: DType, inputs: tuple[_Input, ...], *, rows: bool) -> _Cost:
    count = prod(shape)
    width = 8 if any(each.is_wide for each in inputs) else 4
    block = block_elements(shape, rows=rows)
    blocks = (
        _SCRATCH_BLOCKS_PER_INPUT * len(inputs)
        + _SCRATCH_BLOCKS
        + max((each.step_blocks for each in inputs), default=0)
    )
    units = [each.unit for each in inputs]
    return _Cost(
        read_bytes=sum(each.nbytes + each.side_bytes for each in inputs),
        output_bytes=count * dtype.bits // 8,
        side_bytes=sum(each.side_bytes for each in inputs),
        step_bytes=sum(each.step_bytes for each in inputs),
        window_extra_bytes=sum(4 * nbytes for elements, nbytes in units if elements > 1)
        + sum(2 * each.extra_bytes for each in inputs),
        window_element_bytes=sum(2 * -(-nbytes // elements) for elements, nbytes in units) + dtype.bits // 8,
        least_window=max(BLOCK_ELEMENTS, block),
        scratch_bytes=width * min(block, max(count, 1)) * blocks,
    )
