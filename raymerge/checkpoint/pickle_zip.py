"""The zip around a PyTorch checkpoint: which bytes of the file are which entry, from its directory alone."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raymerge.errors import CheckpointError, Problem
from raymerge.storage.base import ObjectInfo, Store

LOCAL_HEADER_BYTES = 30
_SIGNATURE = b"PK\x03\x04"
_MAX_DIRECTORY_BYTES = 64 * 2**20  # an entry takes some 80 bytes
_ENCRYPTED, _HAS_DESCRIPTOR = 0x1, 0x8
_ALIGNMENT_BYTES = 64  # PyTorch starts every entry's data on a multiple of this
_LARGE = 2**32 - 1  # sizes and offsets from here on stand in extra fields
# Whatever zipfile's parsing of hostile bytes ends in.
_HOSTILE = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, EOFError, struct.error)
_DAMAGED = "download it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipEntry:
    """`header` is where its local header starts, `end` where what follows it does; between them lie its `nbytes`."""

    name: str
    header: int
    end: int
    nbytes: int
    has_descriptor: bool


class Ranges:
    """A file's bytes by range, each kept once read. `guess_bytes` more are read at the two ends, in case."""

    def __init__(self, store: Store, info: ObjectInfo, *, guess_bytes: int) -> None:
        self.nbytes = info.nbytes
        self._store = store
        self._info = info
        self._guess = guess_bytes
        self._kept: list[tuple[int, bytes]] = []

    def get(self, start: int, end: int) -> bytes:
        """Bytes [start, end); the caller keeps inside the file."""
        for begin, data in self._kept:
            if begin <= start and end <= begin + len(data):
                return data[start - begin : end - begin]
        begin, stop = start, end
        if stop <= self._guess:
            stop = min(self._guess, self.nbytes)
        elif begin >= self.nbytes - self._guess:
            begin = max(0, self.nbytes - self._guess)
        buffer = bytearray(stop - begin)
        if buffer:
            self._store.read_into(self._info.url, buffer, offset=begin, version=self._info.version)
        data = bytes(buffer)
        self._kept.append((begin, data))
        return data[start - begin : end - begin]


class _File(io.RawIOBase):
    """`Ranges` as the file object that zipfile reads."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ranges.nbytes}[whence]
        if origin + offset < 0:
            raise OSError("before the start of the file")
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._ranges.nbytes - self._position)
        size = left if size < 0 else min(size, left)
        if size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        data = self._ranges.get(self._position, self._position + size)
        self._position += size
        return data


def read_directory(ranges: Ranges, subject: str) -> Mapping[str, ZipEntry]:
    """The entries by name. Raises CheckpointError for compressed, encrypted, doubled or overlapping ones."""
    try:
        with zipfile.ZipFile(_File(ranges)) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            directory_start = archive.start_dir
    # whatever zipfile's parsing of hostile bytes ends in
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OverflowError,
        OSError,
        EOFError,
        struct.error,
    ) as error:
        message = f"its zip directory cannot be read ({type(error).__name__}: {error})"
        raise CheckpointError(Problem(subject=subject, message=message, remedy=_DAMAGED)) from error
    ends = [*(info.header_offset for info in infos[1:]), directory_start]
    entries = [_entry(info, end, subject) for info, end in zip(infos, ends, strict=True)]
    _refuse_doubled(entries, subject)
    return {entry.name: entry for entry in entries}


def _entry(info: zipfile.ZipInfo, end: int, subject: str) -> ZipEntry:
    fault = ""
    if info.flag_bits & _ENCRYPTED:
        fault = "is encrypted"
    elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        fault = "is compressed, and ranges of it cannot be read"
    elif info.header_offset < 0 or info.header_offset + LOCAL_HEADER_BYTES + info.file_size > end:
        fault = f"claims {info.file_size} bytes, more than lie before the next entry"
    if fault:
        remedy = "save it again with torch.save, or as safetensors" if fault.startswith("is ") else _DAMAGED
        raise CheckpointError(Problem(subject=subject, message=f"its entry {info.filename!a} {fault}", remedy=remedy))
    return ZipEntry(
        name=info.filename,
        header=info.header_offset,
        end=end,
        nbytes=info.file_size,
        has_descriptor=bool(info.flag_bits & _HAS_DESCRIPTOR),
    )


def _refuse_doubled(entries: Iterable[ZipEntry], subject: str) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            message = f"its zip holds {entry.name!a} twice"
            raise CheckpointError(Problem(subject=subject, message=message, remedy=_DAMAGED))
        seen.add(entry.name)


def data_start(ranges: Ranges, entry: ZipEntry, subject: str) -> int:
    """Where an entry's data starts: its local header says, which is read only where the layout does not tell.

    A checkpoint has hundreds of entries, and a read of each would take a store seconds.
    """
    start = _start_by_layout(entry)
    if start is None:
        header = ranges.get(entry.header, entry.header + LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        start = entry.header + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if not header.startswith(_SIGNATURE) or start + entry.nbytes > entry.end:
            message = f"its entry {entry.name!a} is not where the zip's directory says"
            raise CheckpointError(Problem(subject=subject, message=message, remedy=_DAMAGED))
    return start


def _start_by_layout(entry: ZipEntry) -> int | None:
    """Where the data starts if this is PyTorch's layout: aligned behind the header, and flush with what follows.

    Both are computed apart, and a position that only one of them gives is not taken.
    """
    is_large, is_far = entry.nbytes >= _LARGE, entry.header >= _LARGE
    extra = 4 + (4 if is_large or is_far else 0) + 16 * is_large + 8 * is_far
    front = entry.header + LOCAL_HEADER_BYTES + len(entry.name.encode()) + extra
    front += -front % _ALIGNMENT_BYTES
    descriptor = (24 if is_large else 16) if entry.has_descriptor else 0
    return front if front + entry.nbytes + descriptor == entry.end else None
