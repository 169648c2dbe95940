"""What every store can do. URLs are plain absolute paths for local files, else `scheme://...`.

All calls block and may be made from many threads at once. Faults worth another try (timeouts, resets, throttling) are
retried in place with jittered exponential backoff, bounded in time, then raised as `TransientStorageError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from raymerge.errors import NotFoundError

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """An object that exists.

    `version` changes when the content may have; `identity` is the content where the store can say it (etag and size on
    S3, content hash on the hub), else "". `crc32` is of the whole object, where the store keeps it.
    `modified` is in seconds since 1970, where the store tells.
    """

    url: str
    nbytes: int
    version: str
    identity: str = ""
    crc32: int | None = None
    modified: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRange:
    """A byte range of an existing object that becomes part of a new one unchanged; valid while it is `version`."""

    url: str
    offset: int
    nbytes: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """Bytes that are used where they lie: nobody may write to `data`.

    `load(start, end)` brings a range of them in, or raises StorageError; until `release(start, end)` it counts as this
    process's memory. Pages that it shares with the ranges beside it go with it, and come back when they are touched.
    `confirm` raises ChangedError where they may have changed since they were lent; ask it once they are used.
    """

    data: memoryview
    load: Callable[[int, int], None]
    confirm: Callable[[], None]
    release: Callable[[int, int], None]


class ObjectWriter(ABC):
    """Writes one object front to back, or parts of it early. It appears under its name at `commit`, whole, or never.

    A context manager: leaving it without `commit` aborts and leaves nothing behind.
    """

    @property
    def early_block(self) -> int:
        """What is written early lies on blocks of so many bytes, in the object and in memory; 0: nothing is."""
        return 0

    @abstractmethod
    def write(self, data: Buffer, *, crc32: int | None = None) -> None:
        """Append `data`. `crc32` is its checksum, if the caller has it already. The buffer may be reused on return."""

    def write_early(self, data: Buffer, position: int) -> Future[None]:
        """Begin to write what is to lie at `position`, whether or not its turn has come; any thread may.

        `data` must stay as it is until that is done. Its turn is taken by `pass_over`.
        """
        raise NotImplementedError("nothing is written early")

    def pass_over(self, nbytes: int, *, crc32: int) -> None:
        """Count so many bytes, which have been written early, as appended; `crc32` is their checksum."""
        raise NotImplementedError("nothing is written early")

    @abstractmethod
    def copy(self, source: CopyRange) -> None:
        """Append a range of another object, without the bytes passing through this process where the store can."""

    def settle(self, check: Callable[[], None]) -> None:  # noqa: B027 (most writers have nothing to wait for)
        """Wait until what was appended has arrived, as far as it can; `check` is called meanwhile and may raise."""

    @abstractmethod
    def commit(self) -> ObjectInfo:
        """Make the object durable and visible. Raises if the size is not `nbytes`.

        `crc32` of the result is set, but where the store copied ranges whose checksum it does not tell.
        """

    @abstractmethod
    def abort(self) -> None:
        """Drop everything written. Harmless after `commit` and when called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Store(ABC):
    """Reads and writes objects of one kind of location."""

    @abstractmethod
    def info(self, url: str) -> ObjectInfo:
        """Raises NotFoundError, AccessError."""

    @abstractmethod
    def list(self, url: str) -> tuple[ObjectInfo, ...]:
        """The objects directly inside a folder, by name; temporary files of writers are left out.

        Raises NotFoundError where a local folder does not exist; an object store answers with nothing.
        """

    @abstractmethod
    def read(self, url: str, *, max_bytes: int) -> bytes:
        """A whole small object. Raises StorageError if it is larger than `max_bytes`, NotFoundError, AccessError."""

    @abstractmethod
    def read_into(self, url: str, buffer: Buffer, *, offset: int, version: str) -> None:
        """Fill `buffer` with the bytes from `offset`. Large ranges are read in concurrent parts.

        Raises ChangedError if the object is no longer `version` ("" skips the check), StorageError on a short answer.
        """

    def lend(self, url: str, *, offset: int, nbytes: int, version: str) -> Lent | None:  # noqa: ARG002
        """The bytes from `offset`, if this machine's memory holds them already; else None, and they have to be read.

        Raises ChangedError as `read_into` does.
        """
        return None

    @abstractmethod
    def create(self, url: str, *, nbytes: int) -> ObjectWriter:
        """Start an object of exactly `nbytes`."""

    @abstractmethod
    def delete(self, url: str) -> None:
        """Remove an object; nothing happens if there is none."""

    @abstractmethod
    def probe(self, url: str, *, nbytes: int) -> None:
        """Raise unless folder `url` can be written and has room for `nbytes` more. Leaves nothing behind."""

    @abstractmethod
    def clean(self, url: str, *, names: tuple[str, ...]) -> int:
        """Remove what dead writers of these object names left in folder `url`. Returns how many things were removed."""

    def buffered_bytes(self, nbytes: int) -> int:
        """The most memory that a writer of an object of `nbytes` holds, so that a task's memory can be projected."""
        del nbytes
        return 0

    def copies_from(self, url: str) -> bool:  # noqa: ARG002 (stores that can say so)
        """Whether writers of this store copy ranges of `url` without the bytes passing through this process."""
        return False

    def copied_bytes(self, pieces: Sequence[CopyRange | int]) -> int:
        """Of an object made of `pieces` (so many bytes written, or a range copied), the bytes the store copies itself.

        Ranges that are neighbours in one object are given as one.
        """
        return sum(piece.nbytes for piece in pieces if isinstance(piece, CopyRange) and self.copies_from(piece.url))

    def unfinished(self, url: str) -> tuple[str, ...] | None:  # noqa: ARG002 (stores that can tell say so)
        """Names of the objects in folder `url` that a writer, dead or alive, has begun; None where unknown."""
        return None

    def put(self, url: str, data: bytes) -> ObjectInfo:
        """Write a small object at once, replacing what is there."""
        with self.create(url, nbytes=len(data)) as writer:
            writer.write(data)
            return writer.commit()

    def put_new(self, url: str, data: bytes) -> bool:
        """Write a small object unless there is one already; says whether it was written.

        Of two that try at once one writes, on stores that can promise it; others look first.
        """
        try:
            self.info(url)
        except NotFoundError:
            self.put(url, data)
            return True
        return False
