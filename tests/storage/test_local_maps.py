"""What the page cache holds is lent where it lies; everything else is read, and says what is wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from memory_probe import status_bytes
from page_cache import forget, need_lending

from raymerge.errors import ChangedError, TransientStorageError
from raymerge.storage import local_maps, store_for, traffic
from raymerge.storage.linux import cached_pages
from raymerge.storage.local_files import file_version

MIB = 1 << 20
DATA = os.urandom(MIB) * 5 + os.urandom(4096 + 24)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in the page cache; its pages are clean, so that they can be dropped."""
    found = tmp_path / "model.safetensors"
    with found.open("wb") as file:
        file.write(DATA)
        os.fsync(file.fileno())
    need_lending(found)
    return found


def lend(path: Path, offset: int, nbytes: int):
    return store_for(str(path)).lend(str(path), offset=offset, nbytes=nbytes, version=file_version(path.stat()))


@pytest.mark.parametrize("offset", [0, 8, 4096, MIB - 8, len(DATA) - MIB])
def test_lent_bytes_are_those_of_the_file(path, offset):
    before = traffic().read_bytes
    lent = lend(path, offset, MIB)
    assert traffic().read_bytes == before
    lent.load(0, len(lent.data))
    lent.confirm()
    assert lent.data == DATA[offset : offset + MIB]
    assert traffic().read_bytes - before == MIB


def test_writing_to_them_does_not_reach_the_file(path):
    lend(path, 0, MIB).data[:8] = b"scribble"
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(("offset", "nbytes"), [(0, MIB - 1), (4, MIB), (len(DATA) - MIB, MIB + 8)])
def test_little_crooked_and_missing_bytes_are_not_lent(path, offset, nbytes):
    assert lend(path, offset, nbytes) is None


def test_what_is_not_in_memory_is_not_lent(path):
    forget(path)
    assert lend(path, 0, 4 * MIB) is None


def forget_third_mebibyte(path: Path) -> None:
    """What was written may lie in pages larger than that, which go whole or not at all; what is read does not."""
    forget(path)
    path.read_bytes()
    forget(path, 2 * MIB, MIB)


def test_where_little_of_it_is_missing_it_is_lent_whole(path):
    forget_third_mebibyte(path)
    lent = lend(path, 0, 4 * MIB)
    lent.load(0, len(lent.data))
    assert lent.data == DATA[: 4 * MIB]


def test_a_file_system_that_may_lose_its_pages_lends_none(path, monkeypatch):
    assert lend(path, 0, MIB) is not None
    monkeypatch.setattr(local_maps, "_file_system", lambda _device: "nfs4")
    assert lend(path, 0, MIB) is None


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), ValueError("length is greater than file")])
def test_what_cannot_be_mapped_is_not_lent(path, monkeypatch, error):
    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr("mmap.mmap", refuse)
    assert lend(path, 0, MIB) is None


def test_a_changed_file_is_an_error_before_and_after(path):
    version = file_version(path.stat())
    lent = lend(path, 0, MIB)
    time.sleep(0.02)
    path.write_bytes(DATA[::-1])
    with pytest.raises(ChangedError, match="changed since planning"):
        lent.confirm()
    with pytest.raises(ChangedError, match="changed since planning"):
        store_for(str(path)).lend(str(path), offset=0, nbytes=MIB, version=version)


@pytest.fixture(params=["the system says what it holds", "it is asked for single bytes"])
def asking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "it is asked for single bytes":
        monkeypatch.setattr(local_maps, "cached_pages", lambda *_range: None)


@pytest.mark.usefixtures("asking")
def test_a_file_that_is_cut_short_is_an_error_where_its_bytes_are_brought_in(path):
    lent = lend(path, 0, 4 * MIB)
    os.truncate(path, MIB)
    with pytest.raises((TransientStorageError, ChangedError), match=r"cannot read it|changed since planning"):
        lent.load(0, len(lent.data))


@pytest.mark.usefixtures("asking")
def test_released_bytes_no_longer_count_as_memory(path):
    lent = lend(path, 0, 4 * MIB)
    before = status_bytes("RssFile")
    lent.load(0, len(lent.data))
    assert lent.data.tobytes() == DATA[: 4 * MIB]
    assert status_bytes("RssFile") - before > 3.5 * MIB
    lent.release(0, len(lent.data))
    assert status_bytes("RssFile") - before < MIB


def test_only_what_is_missing_is_brought_in(path, monkeypatch):
    """What all lies in memory appears in the map as it is used."""
    brought = []
    monkeypatch.setattr(local_maps, "bring_in", lambda _address, nbytes: brought.append(nbytes))
    with path.open("rb") as file:
        if cached_pages(file.fileno(), 0, 5) is None:
            pytest.skip("the system does not say what it holds in memory")
    for offset in (0, 8, MIB - 8, len(DATA) - MIB):
        lend(path, offset, MIB).load(0, MIB)
    assert not brought
    forget_third_mebibyte(path)
    lend(path, 0, 2 * MIB).load(0, 2 * MIB)
    assert not brought
    lend(path, 8, 5 * MIB).load(0, 2 * MIB)
    assert brought == [2 * MIB + 8]


def test_pages_of_a_range_are_counted(path):
    with path.open("rb") as file:
        if cached_pages(file.fileno(), 0, 1) is None:
            pytest.skip("the system does not say what it holds in memory")
        assert cached_pages(file.fileno(), 4090, 10) == 2
        assert cached_pages(file.fileno(), 0, len(DATA)) == -(-len(DATA) // 4096)
        forget(path)
        assert cached_pages(file.fileno(), 0, len(DATA)) == 0
        assert cached_pages(file.fileno(), 0, 0) is None
    assert cached_pages(1 << 20, 0, 1) is None  # no such file is open
