"""Local files: nothing half-written under a final name; only the left-overs of the dead are removed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymerge.errors import AccessError, ChangedError, NotFoundError, StorageError
from raymerge.storage import CopyRange, local, local_writer, store_for

WRITE_AND_WAIT = """
import sys, time
from raymerge.storage import store_for
writer = store_for(sys.argv[1]).create(sys.argv[1], nbytes=3_000_000)
writer.write(b"x" * 2_000_000)
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
"""


def start_writer(url: Path, *, seconds: float = 60.0) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(url), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_killed_writer_leaves_what_clean_removes(tmp_path):
    store = store_for(str(tmp_path))
    process = start_writer(tmp_path / "model.bin")
    assert store.list(str(tmp_path)) == ()
    (partial,) = names(tmp_path)
    assert partial.startswith(".model.bin.")
    assert partial.endswith(".partial")
    assert store.unfinished(str(tmp_path)) == ("model.bin",)
    kill(process)
    assert store.clean(str(tmp_path), names=("other.bin",)) == 0
    assert store.clean(str(tmp_path), names=("model.bin",)) == 1
    assert names(tmp_path) == []


def test_clean_leaves_a_living_writer_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "DYING_OWNER_SECONDS", 0.3)
    process = start_writer(tmp_path / "model.bin")
    try:
        assert store_for(str(tmp_path)).clean(str(tmp_path), names=("model.bin",)) == 0
        assert len(names(tmp_path)) == 1
    finally:
        kill(process)


def test_clean_waits_for_a_dying_writer(tmp_path):
    process = start_writer(tmp_path / "model.bin", seconds=0.5)
    assert store_for(str(tmp_path)).clean(str(tmp_path), names=("model.bin",)) == 1
    assert names(tmp_path) == []
    kill(process)


def test_a_writer_whose_file_was_removed_says_so(tmp_path):
    url = str(tmp_path / "a")
    with store_for(url).create(url, nbytes=1) as writer:
        (tmp_path / names(tmp_path)[0]).unlink()
        writer.write(b"x")
        with pytest.raises(StorageError, match="removed the temporary file"):
            writer.commit()
    assert names(tmp_path) == []


def test_a_full_disk_is_told_before_writing(small_disk):
    url = str(small_disk / "out" / "model.bin")
    with pytest.raises(StorageError, match=r"8,000,000 bytes are needed, \d,\d+,\d+ are free"):
        store_for(url).create(url, nbytes=8_000_000)
    with pytest.raises(StorageError, match=r"8,000,000 bytes are needed, \d,\d+,\d+ are free"):
        store_for(url).probe(str(small_disk / "out" / "deeper"), nbytes=8_000_000)
    store_for(url).probe(str(small_disk / "out" / "deeper"), nbytes=1_000_000)
    assert names(small_disk / "out") == []


def test_a_disk_that_fills_up_leaves_nothing(small_disk, monkeypatch):
    monkeypatch.setattr(local_writer, "allocate", lambda *_: False)
    url = str(small_disk / "model.bin")
    with pytest.raises(StorageError, match="No space left"), store_for(url).create(url, nbytes=8_000_000) as writer:
        writer.write(b"x" * 8_000_000)
    assert names(small_disk) == []


def test_reserving_falls_back(tmp_path, monkeypatch):
    monkeypatch.setattr(local_writer, "allocate", lambda *_: False)
    url = str(tmp_path / "a")
    store_for(url).put(url, b"x" * 2_000_000)
    assert os.path.getsize(url) == 2_000_000


def test_a_read_only_folder(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store, url = store_for(str(small_disk)), str(small_disk / "a")
    for write in (
        lambda: store.create(url, nbytes=1),
        lambda: store.probe(str(small_disk), nbytes=1),
        lambda: store.probe(str(small_disk / "new" / "er"), nbytes=1),
    ):
        with pytest.raises(AccessError, match="Read-only"):
            write()


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    url = str(tmp_path / "file" / "model.bin")
    for use in (
        lambda: store_for(url).create(url, nbytes=1),
        lambda: store_for(url).probe(str(tmp_path / "file" / "sub"), nbytes=1),
        lambda: store_for(url).list(str(tmp_path / "file")),
        lambda: store_for(url).info(url),
    ):
        with pytest.raises(StorageError, match=r"Not a directory|is a file|File exists"):
            use()


def test_folders_and_pipes_are_not_objects(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    store = store_for(str(tmp_path))
    with pytest.raises(StorageError, match="is a folder, a file was expected"):
        store.info(str(tmp_path))
    with pytest.raises(StorageError, match="device or pipe"):
        store.read(str(tmp_path / "pipe"), max_bytes=1)
    assert store.list(str(tmp_path)) == ()
    with pytest.raises(NotFoundError):
        store.list(str(tmp_path / "none"))


def test_links_are_followed(tmp_path):
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.bin").symlink_to("../blob")
    (tmp_path / "snapshot" / "gone").symlink_to("../none")
    (tmp_path / "link").symlink_to("snapshot", target_is_directory=True)
    (info,) = store_for(str(tmp_path)).list(str(tmp_path / "link"))
    assert info.url == str(tmp_path / "link" / "model.bin")
    assert store_for(info.url).read(info.url, max_bytes=7) == b"content"
    store_for(info.url).put(str(tmp_path / "link" / "new"), b"x")
    assert (tmp_path / "snapshot" / "new").read_bytes() == b"x"


def test_a_change_of_the_same_size_is_seen(tmp_path):
    url = str(tmp_path / "a")
    version = store_for(url).put(url, b"one").version
    time.sleep(0.01)
    Path(url).write_bytes(b"two")
    with pytest.raises(ChangedError):
        store_for(url).read_into(url, bytearray(3), offset=0, version=version)


def test_a_file_that_shrinks_while_it_is_copied(tmp_path, monkeypatch):
    url, source = str(tmp_path / "a"), tmp_path / "source"
    source.write_bytes(b"x" * 100)
    with (
        pytest.raises(StorageError, match="ends 50 bytes before"),
        store_for(url).create(url, nbytes=150) as writer,
    ):
        writer.copy(CopyRange(url=str(source), offset=0, nbytes=150, version=""))
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, 0])
def test_copies_where_the_kernel_cannot_share_blocks(tmp_path, monkeypatch, number):
    def refuse(*_: object) -> int:
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source, url = str(tmp_path / "source"), str(tmp_path / "copy")
    data = os.urandom(9_000_000)
    version = store_for(source).put(source, data).version
    with store_for(url).create(url, nbytes=8_999_000) as writer:
        writer.copy(CopyRange(url=source, offset=1000, nbytes=8_999_000, version=version))
        assert writer.commit().crc32 == zlib.crc32(data[1000:])
    assert Path(url).read_bytes() == data[1000:]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    url = str(tmp_path / "a")
    store_for(url).put(url, b"old")

    def crash(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(StorageError, match="broken"):
        store_for(url).put(url, b"new")
    monkeypatch.undo()
    assert Path(url).read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_many_writers_of_one_name_leave_one_whole_object(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    url = str(tmp_path / "a")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store_for(url).put(url, bytes([i]) * 2_000_000), range(16)))
    data = Path(url).read_bytes()
    assert data == data[:1] * 2_000_000
    assert names(tmp_path) == ["a"]
