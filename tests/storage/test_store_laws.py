"""What holds for every store: an object is whole or absent, reads are exact, changes are seen, checksums are right."""

from __future__ import annotations

import concurrent.futures
import itertools
import pickle
import random
import zlib

import pytest

from raymerge.errors import ChangedError, NotFoundError, StorageError
from raymerge.storage import CopyRange, ObjectInfo, join_url, store_for, traffic

MIB = 1 << 20
DATA = random.Random(1).randbytes(21 * MIB + 17)


def write(
    url: str, data: bytes, *, pieces: int = 3, checksums: bool = False, announced: int | None = None
) -> ObjectInfo:
    with store_for(url).create(url, nbytes=len(data) if announced is None else announced) as writer:
        edges = [len(data) * i // pieces for i in range(pieces + 1)]
        for start, end in itertools.pairwise(edges):
            piece = data[start:end]
            writer.write(piece, crc32=zlib.crc32(piece) if checksums else None)
        return writer.commit()


def copy(url: str, source: CopyRange) -> ObjectInfo:
    with store_for(url).create(url, nbytes=source.nbytes) as writer:
        writer.copy(source)
        return writer.commit()


@pytest.mark.parametrize("nbytes", [0, 1, 3 * MIB, 16 * MIB, 16 * MIB + 1, len(DATA)])
def test_what_was_written_is_read(folder, nbytes):
    url = join_url(folder, "model.bin")
    store = store_for(url)
    written = write(url, DATA[:nbytes], checksums=nbytes % 2 == 0)
    assert store.read(url, max_bytes=nbytes) == DATA[:nbytes]
    assert written.crc32 == zlib.crc32(DATA[:nbytes])
    found = store.info(url)
    assert (found.nbytes, found.version) == (nbytes, written.version)
    assert found.crc32 in (None, written.crc32)
    assert [item.url for item in store.list(folder)] == [url]
    assert store.list(folder)[0].version == written.version


def test_ranges_are_exact_from_many_threads(folder):
    url = join_url(folder, "model.bin")
    version = write(url, DATA).version
    store = store_for(url)
    rng = random.Random(2)
    ranges = [(0, len(DATA)), (5, 0), (len(DATA) - 1, 1), (0, 1)]
    for _ in range(12):
        start = rng.randrange(len(DATA))
        ranges.append((start, min(len(DATA) - start, rng.randrange(1, 3 * MIB))))

    def check(part: tuple[int, int]) -> bool:
        start, nbytes = part
        buffer = bytearray(b"\xee" * (nbytes + 2))
        store.read_into(url, memoryview(buffer)[1:-1], offset=start, version=version)
        return bytes(buffer) == b"\xee" + DATA[start : start + nbytes] + b"\xee"

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(check, ranges))


def test_a_large_range_comes_in_parts(folder):
    url = join_url(folder, "large.bin")
    data = DATA * 3
    version = write(url, data).version
    buffer = bytearray(len(data) - 10)
    before = traffic()
    store_for(url).read_into(url, buffer, offset=7, version=version)
    assert buffer == data[7:-3]
    assert traffic().read_bytes - before.read_bytes == len(buffer)
    if url.startswith("s3:"):
        assert traffic().requests - before.requests == 4


def test_a_range_past_the_end_is_an_error(folder):
    url = join_url(folder, "model.bin")
    version = write(url, DATA[:1000]).version
    for offset in (990, 2000):
        with pytest.raises(StorageError, match=r"ends at byte|range"):
            store_for(url).read_into(url, bytearray(20), offset=offset, version=version)


def test_a_changed_object_is_an_error(folder):
    url = join_url(folder, "model.bin")
    version = write(url, DATA[:1000]).version
    write(url, DATA[1:1001])
    store = store_for(url)
    with pytest.raises(ChangedError, match="changed since planning"):
        store.read_into(url, bytearray(10), offset=0, version=version)
    with pytest.raises(ChangedError):
        copy(join_url(folder, "copy"), CopyRange(url=url, offset=0, nbytes=100, version=version))
    buffer = bytearray(10)
    store.read_into(url, buffer, offset=0, version="")
    assert buffer == DATA[1:11]


@pytest.mark.parametrize("nbytes", [100, 20 * MIB])
def test_an_error_inside_leaves_nothing(folder, nbytes):
    url = join_url(folder, "model.bin")
    store = store_for(url)

    def fail() -> None:
        with store.create(url, nbytes=nbytes) as writer:
            writer.write(DATA[: nbytes - 1])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.list(folder) == ()
    assert store.clean(folder, names=("model.bin",)) == 0
    with pytest.raises(NotFoundError):
        store.info(url)


def test_an_error_inside_keeps_the_old_object(folder):
    url = join_url(folder, "model.bin")
    old = write(url, b"old")
    with store_for(url).create(url, nbytes=17 * MIB) as writer:
        writer.write(DATA[: 17 * MIB])
        writer.abort()
        writer.abort()
    assert store_for(url).read(url, max_bytes=9) == b"old"
    assert store_for(url).info(url).version == old.version


@pytest.mark.parametrize("nbytes", [10, 18 * MIB])
def test_size_must_be_the_announced_one(folder, nbytes):
    url = join_url(folder, "model.bin")
    for written in (nbytes - 1, nbytes + 1):
        with pytest.raises(StorageError, match="announced"):
            write(url, DATA[:written], announced=nbytes)
    assert store_for(url).list(folder) == ()


@pytest.mark.parametrize("seed", range(4))
def test_copied_and_written_ranges_mix(folder, seed):
    rng = random.Random(seed)
    source = join_url(folder, "source.bin")
    version = write(source, DATA).version
    moves: list[tuple[bool, int, int]] = []
    for _ in range(6):
        nbytes = rng.choice([1, 1000, MIB, 6 * MIB, 13 * MIB])
        moves.append((rng.random() < 0.6, rng.randrange(len(DATA) - nbytes), nbytes))
    expected = b"".join(DATA[start : start + nbytes] for _, start, nbytes in moves)
    url = join_url(folder, "mixed.bin")
    with store_for(url).create(url, nbytes=len(expected)) as writer:
        for copied, start, nbytes in moves:
            if copied:  # in two neighbouring ranges, which are one
                half = nbytes // 2
                writer.copy(CopyRange(url=source, offset=start, nbytes=half, version=version))
                writer.copy(CopyRange(url=source, offset=start + half, nbytes=nbytes - half, version=version))
            else:
                writer.write(DATA[start : start + nbytes])
        info = writer.commit()
    assert store_for(url).read(url, max_bytes=len(expected)) == expected
    assert info.crc32 == zlib.crc32(expected)


def test_copies_between_stores(folder, tmp_path, s3):
    other = s3.folder() if not folder.startswith("s3") else str(tmp_path / "x")
    source = join_url(other, "source.bin")
    version = write(source, DATA).version
    url = join_url(folder, "copy.bin")
    with store_for(url).create(url, nbytes=len(DATA) - 5) as writer:
        writer.copy(CopyRange(url=source, offset=5, nbytes=len(DATA) - 5, version=version))
        info = writer.commit()
    assert info.crc32 == zlib.crc32(DATA[5:])
    assert store_for(url).read(url, max_bytes=len(DATA)) == DATA[5:]


def test_missing_things(folder):
    store = store_for(folder)
    url = join_url(folder, "none")
    for ask in (
        lambda: store.info(url),
        lambda: store.read(url, max_bytes=5),
        lambda: store.read_into(url, bytearray(5), offset=0, version=""),
    ):
        with pytest.raises(NotFoundError, match="none: does not exist"):
            ask()
    store.delete(url)
    assert store.clean(folder, names=("none",)) == 0


def test_read_refuses_what_is_too_large(folder):
    url = join_url(folder, "big")
    write(url, DATA[:1000])
    with pytest.raises(StorageError, match="1,000"):
        store_for(url).read(url, max_bytes=999)


def test_put_replaces_and_delete_removes(folder):
    url = join_url(folder, "config.json")
    store = store_for(url)
    store.put(url, b"one")
    store.put(url, b"two")
    assert store.read(url, max_bytes=3) == b"two"
    store.delete(url)
    assert store.list(folder) == ()


def test_list_holds_files_of_this_folder_alone(folder):
    store = store_for(folder)
    for name in ("b", "a", "sub/c", "é ü+&.json"):
        store.put(join_url(folder, name), b"x")
    assert [item.url for item in store.list(folder)] == [join_url(folder, name) for name in ("a", "b", "é ü+&.json")]
    assert store.read(join_url(folder, "é ü+&.json"), max_bytes=1) == b"x"


def test_probe_leaves_nothing(folder):
    store = store_for(folder)
    store.probe(join_url(folder, "deep/er"), nbytes=10)
    store.put(join_url(folder, "a"), b"x")
    store.probe(folder, nbytes=10)
    assert [item.url for item in store.list(folder)] == [join_url(folder, "a")]


def test_stores_carry_nothing_in_a_pickle(folder):
    store = store_for(folder)
    store.put(join_url(folder, "a"), b"x")
    text = pickle.dumps(store)
    assert len(text) < 100
    assert pickle.loads(text).read(join_url(folder, "a"), max_bytes=1) == b"x"
