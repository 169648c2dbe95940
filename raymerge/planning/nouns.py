"""The plan: every byte offset of the output, and what each tensor is made of, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint, TensorRef, TensorSpec
from raymerge.errors import Problem

ParameterValues = Mapping[str, float | int | bool | str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInput:
    """One input of a job: the bytes of a tensor, and the values of the method's per-input parameters.

    `found` are further ones that a first phase found out, from the plan and its inputs alone.
    """

    ref: TensorRef
    parameters: ParameterValues = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorJob:
    """How one output tensor is made.

    `method` is a registered method's name, or "copy": the bytes of the only input, unchanged. `base` is given where the
    method keeps it apart from its inputs. `slots` numbers the inputs for random streams, the base not counted.
    `method_sha256` is of the code of a method from outside this package, else "".
    """

    output: TensorSpec
    method: str
    inputs: tuple[JobInput, ...]
    base: TensorRef | None = None
    parameters: ParameterValues = field(default_factory=dict)
    seed: int = 0
    slots: tuple[int, ...] = ()
    method_sha256: str = ""

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Every tensor that is read, the base first."""
        base = (self.base,) if self.base is not None else ()
        return base + tuple(each.ref for each in self.inputs)

    @property
    def shared(self) -> tuple[int, ...]:
        """For each of `refs`, the place of the first one that lies in the same bytes: a base under several adapters."""
        places: dict[tuple[str | int, ...], int] = {}
        return tuple([places.setdefault(ref.key, i) for i, ref in enumerate(self.refs)])

    @property
    def reads(self) -> tuple[TensorRef, ...]:
        """Every stored tensor that is read, once: those of `refs`, and what their steps need beside them."""
        places = self.shared
        sides = [side for ref in self.refs for side in ref.sides]
        return (*(ref for i, ref in enumerate(self.refs) if places[i] == i), *sides)

    @property
    def read_bytes(self) -> int:
        return sum(ref.nbytes for ref in self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One output file: its jobs in file order, behind the header that their layout and the plan's digest give."""

    file_name: str
    jobs: tuple[TensorJob, ...]
    plan_digest: str
    memory: MemoryProjection

    @property
    def projected_bytes(self) -> int:
        return self.memory.total_bytes

    @property
    def read_bytes(self) -> int:
        return sum(job.read_bytes for job in self.jobs)

    @property
    def tensor_bytes(self) -> int:
        return sum(job.output.nbytes for job in self.jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProjection:
    """The most memory one shard task needs above its worker's baseline, term by term, in bytes.

    `inputs_bytes` and `output_bytes` are the largest tensors held whole, or the windows of one that streams;
    `prefetch_bytes` what is held beside them; `scratch_bytes` blocks and `state_bytes` what methods keep through a
    tensor, over all merging threads; `upload_bytes` the writer's buffers; `task_bytes` the task itself.
    """

    inputs_bytes: int
    prefetch_bytes: int
    scratch_bytes: int
    output_bytes: int
    upload_bytes: int
    state_bytes: int = 0
    task_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        tensors = self.inputs_bytes + self.prefetch_bytes + self.output_bytes
        return tensors + self.scratch_bytes + self.state_bytes + self.upload_bytes + self.task_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """What a finished shard task reports.

    `read_back_bytes` were read again for a checksum that the store does not tell; `peak_bytes` is the worker's peak
    memory while it ran, 0 where not known; `phase_seconds` are those of all its threads by what they did.
    """

    file_name: str
    nbytes: int
    crc32: int
    read_bytes: int
    read_back_bytes: int = 0
    nonfinite: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0
    phase_seconds: tuple[tuple[str, float], ...] = ()
    peak_bytes: int = 0
    node: str = ""

    @property
    def written_bytes(self) -> int:
        return self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """What happened to tensors of one input for one reason. `fate` is "merged", "copied" or "dropped"."""

    model: str
    fate: str
    rule: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedRows:
    """What became of a model's embedding in the output's vocabulary.

    `matched` tokens have the model's own rows, `filled` says of how many others where their rows come from, `dropped`
    tokens of the model are not in the output; `padding` rows without a token are kept.
    """

    model: str
    matched: int
    filled: tuple[tuple[str, int], ...]
    dropped: int
    padding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedVocabulary:
    """The output's vocabulary where it is not simply the donor's.

    `source` is as in the recipe. `files` are those of the tokenizer and the generation config that differ from the
    donor's; None for what would contradict them and is left out.
    """

    source: str
    token_count: int
    row_count: int
    rows: tuple[AlignedRows, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a run needs, decided. Same digest, same bytes.

    `digest` hashes what bears on the output's bytes: file names, layouts, methods, numbers, seeds and input identities;
    no worker count or memory size. `output_config` is the config.json to write; `donor` gives the other small files,
    `tokenizer_donor` the tokenizer. `models` are in recipe order;
    `warnings` are what a user should read before running. `surveyed` are the output tensors that a first phase looks
    at, in the model's order whatever the files, `survey_passes` times as a rule.
    """

    digest: str
    shards: tuple[ShardTask, ...]
    ledger: tuple[LedgerLine, ...]
    output_config: Mapping[str, Any]
    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    donor: Checkpoint
    methods: tuple[str, ...]
    layer_count: int
    parameters_by_layer: tuple[ParameterRow, ...] = ()
    warnings: tuple[Problem, ...] = ()
    recipe_text: str = ""
    chat_template: str | None = None
    copy_tokenizer: bool = True
    tokenizer_donor: Checkpoint | None = None
    vocabulary: AlignedVocabulary | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    surveyed: tuple[str, ...] = ()
    survey_passes: int = 0

    @property
    def survey_bytes(self) -> int:
        """What a first phase reads, as a rule, before any tensor is merged."""
        if not self.surveyed:
            return 0
        names = set(self.surveyed)
        jobs = (job for shard in self.shards for job in shard.jobs if job.output.name in names)
        return self.survey_passes * sum(job.read_bytes for job in jobs)

    @property
    def output_bytes(self) -> int:
        return sum(shard.tensor_bytes for shard in self.shards)

    @property
    def read_bytes(self) -> int:
        return sum(shard.read_bytes for shard in self.shards)

    @property
    def tensor_count(self) -> int:
        return sum(len(shard.jobs) for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterRow:
    """One parameter over the layers, for the plan's screen.

    `subject` is the filter it holds for ("" for everything else), `model` "" for shared parameters; `values` has one
    entry per output layer, or a single one where all agree.
    """

    name: str
    subject: str
    model: str
    values: tuple[float | int | bool | str | None, ...]
