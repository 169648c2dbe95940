"""What a checkpoint is: tensors as byte ranges of files, and a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from raymerge.dtypes import DType

if TYPE_CHECKING:
    from raymerge.checkpoint.steps import GatherRows, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor's name, element type and shape; it holds no data."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def element_count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.element_count * self.dtype.bits // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One weight file.

    `version` is checked on every read (etag, commit, or size and mtime): a file that changed since planning is an
    error. `identity` stands for the content and enters the plan's digest: etag and size on S3, the content hash on the
    hub; a disk knows no such thing, so there it is place, size, time of change and header.
    """

    url: str
    nbytes: int
    version: str
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """Where one tensor's bytes lie: `nbytes` bytes of `file` from `offset`.

    `spec` is the tensor that is read. Its bytes are stored as they are, or `steps` make it of what is `stored` there.
    """

    spec: TensorSpec
    file: SourceFile
    offset: int
    stored: TensorSpec | None = None
    steps: tuple[Step, ...] = ()

    @property
    def nbytes(self) -> int:
        gather = self.gather
        return gather.nbytes if gather is not None else (self.stored or self.spec).nbytes

    @property
    def gather(self) -> GatherRows | None:
        """The step that puts rows of several tensors together; without it, the bytes lie in one piece."""
        if not self.steps:
            return None
        from raymerge.checkpoint.steps import GatherRows

        return self.steps[0] if isinstance(self.steps[0], GatherRows) else None

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Where its bytes lie, those of its sides not counted."""
        gather = self.gather
        return (self.file,) if gather is None else tuple(source.file for source in gather.sources)

    @property
    def key(self) -> tuple[str | int, ...]:
        """Equal for refs that the same stored bytes are read for."""
        gather = self.gather
        if gather is None:
            return self.file.url, self.offset, (self.stored or self.spec).nbytes
        return (
            self.file.url,
            self.offset,
            gather.nbytes,
            gather.runs.sha256,
            *(part for source in gather.sources for part in source.key),
        )

    @property
    def sides(self) -> tuple[TensorRef, ...]:
        """The other tensors that the steps read, whole."""
        return tuple(side for step in self.steps for side in step.sides)

    @property
    def unit(self) -> tuple[int, int]:
        """So many elements, one after the other, are stored in so many bytes of their own."""
        packed = self.steps[0].unit if self.steps else None
        return packed or (1, (self.stored or self.spec).dtype.bits // 8)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The bytes, counted from `offset`, that hold elements [start, end) of `spec`: whole units.

        Not for rows that are gathered.
        """
        elements, nbytes = self.unit
        return start // elements * nbytes, min(-(-end // elements) * nbytes, self.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """What becomes of a stored tensor that only helps to make another one, `serves`; or of no further use beside it."""

    serves: str
    rule: str
    is_dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as its headers describe it.

    `reference` is the name the recipe used; `url` the folder its files lie in, with the hub's commit pinned;
    `hub_id` is `org/name` for hub models; `origin` says in a few words where bytes come from ("local folder", "hub
    cache", "range-read"). `tensors` is in file order; `files` are all weight files, `side_files` the names of the small
    files beside them (tokenizer, generation_config.json, ...). `notes` are what a user may want to know about how
    it was found and read: a local folder that wins over a hub id, files that are not read. `adapter` is what was
    added to the model; `helpers` are the stored tensors, by name, that `tensors` are made of and does not list.
    """

    reference: str
    url: str
    origin: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    files: tuple[SourceFile, ...]
    side_files: tuple[str, ...]
    hub_id: str | None = None
    commit: str | None = None
    notes: tuple[str, ...] = ()
    adapter: Checkpoint | None = None
    helpers: Mapping[str, Helper] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Checkpoint, ...]:
        """What lies in a place of its own: the model, and the adapter added to it."""
        return (self,) if self.adapter is None else (self, self.adapter)

    @property
    def nbytes(self) -> int:
        """Stored bytes of the tensors and of what they are made with."""
        return sum(part.nbytes for ref in self.tensors.values() for part in (ref, *ref.sides))
