"""Large files are written past the page cache, and nobody can tell but by the clock."""

from __future__ import annotations

import mmap
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from raymerge.errors import StorageError
from raymerge.storage import CopyRange, direct_io, local_writer, store_for
from raymerge.storage.direct_io import DirectAppender


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "BUFFER_BYTES", 64 << 10)
    monkeypatch.setattr(local_writer, "_DIRECT_FROM_BYTES", 1)


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, 65536, 65537, 1_000_003])
def test_pieces_of_any_size_come_out_whole(tmp_path: Path, nbytes: int) -> None:
    rng = random.Random(nbytes)
    content = rng.randbytes(nbytes)
    url = str(tmp_path / "object")
    with store_for(url).create(url, nbytes=nbytes) as writer:
        start = 0
        while start < nbytes:
            end = min(nbytes, start + rng.randint(1, 90_000))
            writer.write(content[start:end])
            start = end
        info = writer.commit()
    assert Path(url).read_bytes() == content
    assert info.crc32 == zlib.crc32(content)
    assert [path.name for path in tmp_path.iterdir()] == ["object"]


@pytest.mark.parametrize("seed", range(6))
def test_whole_blocks_go_straight_and_the_rest_by_way_of_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Pieces anywhere in memory and of any length; of those that need no copy, the disk gets the very bytes."""
    rng = random.Random(seed)
    monkeypatch.setattr(direct_io, "_STRAIGHT_FROM_BYTES", 8192)
    memory = np.frombuffer(mmap.mmap(-1, 4 << 20), np.uint8)
    memory[:] = np.random.default_rng(seed).integers(0, 256, len(memory), np.uint8)
    written: list[int] = []
    write = DirectAppender._write

    def record(self: DirectAppender, view: memoryview, offset: int) -> None:
        if len(view):
            written.append(np.frombuffer(view, np.uint8).ctypes.data)
        write(self, view, offset)

    monkeypatch.setattr(DirectAppender, "_write", record)
    pieces, straight, total = [], set(), 0
    for _ in range(60):
        start = rng.choice([0, 4096, 40_960, 100, rng.randrange(1 << 20)])
        piece = memory[start : start + rng.choice([4096, 8192, 65_536, 262_144, 5000, 1, rng.randrange(1, 200_000)])]
        if total % 4096 == 0 and start % 4096 == 0 and len(piece) >= 8192:
            straight.add(piece.ctypes.data)
        pieces.append(piece)
        total += len(piece)
        if rng.random() < 0.5 and total % 4096:  # go on at a whole block
            pieces.append(memory[: -total % 4096])
            total += -total % 4096
    expected = b"".join(piece.tobytes() for piece in pieces)
    url = str(tmp_path / "object")
    with store_for(url).create(url, nbytes=total) as writer:
        for piece in pieces:
            writer.write(piece)
        info = writer.commit()
    assert Path(url).read_bytes() == expected
    assert info.crc32 == zlib.crc32(expected)
    assert straight
    if not written:
        pytest.skip("the file system takes no direct writes")
    assert straight <= set(written)


def test_copied_ranges_and_written_pieces_mix(tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = random.Random(1).randbytes(500_000)
    source.write_bytes(content)
    store = store_for(str(source))
    version = store.info(str(source)).version
    url = str(tmp_path / "object")
    expected = b"header" + content[1000:400_000] + b"middle" + content[7:8]
    with store.create(url, nbytes=len(expected)) as writer:
        writer.write(b"header")
        writer.copy(CopyRange(url=str(source), offset=1000, nbytes=399_000, version=version))
        writer.write(b"middle")
        writer.copy(CopyRange(url=str(source), offset=7, nbytes=1, version=version))
        info = writer.commit()
    assert Path(url).read_bytes() == expected
    assert info.crc32 == zlib.crc32(expected)


@pytest.mark.parametrize("straight_from", [1, 1 << 30], ids=["straight", "buffered"])
def test_a_failed_write_is_raised_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight_from: int
) -> None:
    def full(self: DirectAppender, view: memoryview, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DirectAppender, "_write", full)
    monkeypatch.setattr(direct_io, "_STRAIGHT_FROM_BYTES", straight_from)
    data = np.frombuffer(mmap.mmap(-1, 1_000_000), np.uint8)
    url = str(tmp_path / "object")

    def write() -> None:
        with store_for(url).create(url, nbytes=1_000_000) as writer:
            writer.write(data)
            writer.commit()

    with pytest.raises(StorageError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []
