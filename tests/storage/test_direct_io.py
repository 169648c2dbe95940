"""Large files are written past the page cache, and nobody can tell but by the clock."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

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


def test_a_failed_write_is_raised_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: DirectAppender, view: memoryview, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DirectAppender, "_write", full)
    url = str(tmp_path / "object")

    def write() -> None:
        with store_for(url).create(url, nbytes=1_000_000) as writer:
            writer.write(bytes(1_000_000))
            writer.commit()

    with pytest.raises(StorageError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []
