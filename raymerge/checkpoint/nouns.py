"""What a checkpoint is: tensors as byte ranges of files, and a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from raymerge.dtypes import DType


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
    """Where one tensor's bytes lie: `spec.nbytes` bytes of `file` from `offset`."""

    spec: TensorSpec
    file: SourceFile
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as its headers describe it.

    `reference` is the name the recipe used; `url` the folder its files lie in, with the hub's commit pinned;
    `hub_id` is `org/name` for hub models; `origin` says in a few words where bytes come from ("local folder", "hub
    cache", "range-read"). `tensors` is in file order; `files` are all weight files, `side_files` the names of the small
    files beside them (tokenizer, generation_config.json, ...). `notes` are what a user may want to know about how
    it was found and read: a local folder that wins over a hub id, files that are not read.
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

    @property
    def nbytes(self) -> int:
        return sum(ref.spec.nbytes for ref in self.tensors.values())
