"""Large files are written past the page cache, and nobody can tell but by the clock."""

from __future__ import annotations

import mmap
import random
import zlib
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from raymerge.errors import StorageError
from raymerge.storage import CopyRange, direct_io, local_writer, store_for
from raymerge.storage.direct_io import DirectAppender
from raymerge.storage.linux import HUGE_PAGE_BYTES, map_huge_pages


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "BUFFER_BYTES", 64 << 10)
    monkeypatch.setattr(local_writer, "_DIRECT_FROM_BYTES", 1)


def random_pages(seed: int) -> np.ndarray:
    """Memory that begins on a page, as only mapped buffers do."""
    memory = np.frombuffer(mmap.mmap(-1, 4 << 20), np.uint8)
    memory[:] = np.random.default_rng(seed).integers(0, 256, len(memory), np.uint8)
    return memory


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
    rng, memory = random.Random(seed), random_pages(seed)
    monkeypatch.setattr(direct_io, "_STRAIGHT_FROM_BYTES", 8192)
    written: list[int] = []
    write = DirectAppender.write_at

    def record(self: DirectAppender, view: memoryview, offset: int) -> None:
        if len(view):
            written.append(np.frombuffer(view, np.uint8).ctypes.data)
        write(self, view, offset)

    monkeypatch.setattr(DirectAppender, "write_at", record)
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


@pytest.mark.parametrize("seed", range(6))
def test_whole_blocks_written_before_their_turn_are_those_of_the_file(tmp_path: Path, seed: int) -> None:
    """In any order and several at a time, between others that have their turn."""
    rng, memory = random.Random(seed), random_pages(seed)
    pieces: list[np.ndarray] = []
    positions: list[int] = []
    total = 0
    for _ in range(50):
        start = rng.choice([0, 4096, 40_960, 100])
        positions.append(total)
        pieces.append(memory[start : start + rng.choice([4096, 8192, 65_536, 262_144, 20_000, 5000, 3192, 1])])
        total += len(pieces[-1])
        if total % 4096 and rng.random() < 0.5:
            positions.append(total)
            pieces.append(memory[: -total % 4096])
            total += -total % 4096
    whole = {
        i for i, piece in enumerate(pieces) if positions[i] % 4096 == len(piece) % 4096 == piece.ctypes.data % 4096 == 0
    }
    assert 3 < len(whole) < len(pieces) - 3
    url = str(tmp_path / "object")
    early: dict[int, Future[None]] = {}
    with store_for(url).create(url, nbytes=total) as writer:
        if writer.early_block != 4096:
            pytest.skip("the file system takes no direct writes")
        for turn, piece in enumerate(pieces):
            for i in rng.sample(range(turn, len(pieces)), k=min(3, len(pieces) - turn)):
                if i not in early and i in whole:
                    early[i] = writer.write_early(pieces[i], positions[i])
            if turn in early:
                early[turn].result()
                writer.pass_over(len(piece), crc32=zlib.crc32(piece))
            else:
                writer.write(piece)
        with pytest.raises(StorageError, match="were announced"):
            writer.write_early(memory[:8192], -(-total // 4096) * 4096)
        info = writer.commit()
    expected = b"".join(piece.tobytes() for piece in pieces)
    assert Path(url).read_bytes() == expected
    assert info.crc32 == zlib.crc32(expected)


def test_what_was_written_early_and_never_had_its_turn_is_missed(tmp_path: Path) -> None:
    memory = np.frombuffer(mmap.mmap(-1, 2 << 20), np.uint8)
    url = str(tmp_path / "object")
    writer = store_for(url).create(url, nbytes=len(memory) + 4096)
    with writer:
        writer.write(bytes(4096))
        if not writer.early_block:
            pytest.skip("the file system takes no direct writes")
        writer.write_early(memory, 4096).result()
        with pytest.raises(StorageError, match="4,096 bytes were written"):
            writer.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nbytes", [1, 4096, 5 << 20])
def test_huge_pages_are_asked_for_where_they_can_lie(nbytes: int) -> None:
    memory = map_huge_pages(nbytes)
    assert len(memory) == nbytes
    assert np.frombuffer(memory, np.uint8).ctypes.data % HUGE_PAGE_BYTES == 0
    memory[0], memory[-1] = 1, 2


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

    monkeypatch.setattr(DirectAppender, "write_at", full)
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
