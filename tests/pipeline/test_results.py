"""A tensor that is written in parts while it is merged has the bytes of one that is written whole in its turn."""

from __future__ import annotations

import random
import time
import zlib
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymerge.checkpoint.nouns import TensorSpec
from raymerge.dtypes import DType
from raymerge.errors import StorageError
from raymerge.merging import buffers, results
from raymerge.merging.buffers import Account, drop_idle_buffers
from raymerge.merging.results import Merged, open_result
from raymerge.merging.stopwatch import Stopwatch
from raymerge.planning.nouns import TensorJob
from raymerge.storage import direct_io, local_writer, store_for
from raymerge.storage.base import ObjectWriter
from raymerge.storage.linux import HUGE_PAGE_BYTES, map_huge_pages

BLOCK = 4096
DTYPES = (DType.BF16, DType.F32, DType.F8_E4M3)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_writer, "_DIRECT_FROM_BYTES", 1)
    monkeypatch.setattr(results, "_LEAST_PART_BYTES", 4 * BLOCK)
    monkeypatch.setattr(results, "PART_BYTES", 16 * BLOCK)
    monkeypatch.setattr(buffers, "_MAP_FROM_BYTES", 1)  # so that all of them lie on whole pages
    drop_idle_buffers()


class Watched(Account):
    """Remembers by how much what was taken ever exceeded what was acquired."""

    most_over = 0

    def take(self, nbytes: int, *, is_lasting: bool = False) -> np.ndarray:
        buffer = super().take(nbytes, is_lasting=is_lasting)
        self.most_over = max(self.most_over, self._taken - self._used)
        return buffer


def job_of(nbytes: int, dtype: DType) -> TensorJob:
    spec = TensorSpec(name="w", dtype=dtype, shape=(nbytes // (dtype.bits // 8),))
    return TensorJob(output=spec, method="linear", inputs=())


def finish(writer: ObjectWriter, account: Account, merged: Merged) -> None:
    for written, buffer in merged.writing:
        written.result()
        account.give(buffer)
    if not merged.early_bytes:
        writer.write(merged.data, crc32=merged.crc32)
        account.give(merged.data)
        return
    writer.write(merged.data)
    writer.pass_over(merged.early_bytes, crc32=merged.crc32 or 0)
    writer.write(merged.rest)


@pytest.mark.parametrize("seed", range(12))
def test_parts_come_out_as_the_whole(tmp_path: Path, seed: int) -> None:
    """Tensors anywhere in the file, blocks of any length, merged in any order; memory stays what was set aside."""
    rng = random.Random(seed)
    header = rng.randbytes(rng.choice([BLOCK, 3 * BLOCK, 1000, 4104]))
    dtypes = [rng.choice(DTYPES) for _ in range(8)]
    sizes = [rng.choice([5, 8, 16, 64, 300]) * BLOCK + rng.choice([0, 0, 8, 4000, -8]) for _ in dtypes]
    sizes[3] = 1024
    contents = [np.frombuffer(rng.randbytes(size), np.uint8) for size in sizes]
    starts = list(accumulate(sizes, initial=len(header)))
    url, account, made = str(tmp_path / "object"), Watched(sum(sizes) + 16 * BLOCK), {}
    with store_for(url).create(url, nbytes=starts[-1]) as writer:
        if not writer.early_block:
            pytest.skip("the file system takes no direct writes")
        writer.write(header)
        for i in rng.sample(range(len(sizes)), len(sizes)):
            job, width = job_of(sizes[i], dtypes[i]), dtypes[i].bits // 8
            assert account.try_acquire(sizes[i])
            result = open_result(job, account, writer, starts[i], Stopwatch())
            count, longest = sizes[i] // width, rng.choice([700, 9000, 100_000])
            cuts = sorted({0, count, *(rng.randrange(count) for _ in range(count // longest))})
            for first, last in pairwise(cuts):
                result.place(first, last)[:] = contents[i][first * width : last * width]
            made[i] = result.finish(0)
        assert sum(merged.early_bytes > 0 for merged in made.values()) == 7
        for i in range(len(sizes)):
            finish(writer, account, made[i])
        info = writer.commit()
    expected = header + b"".join(content.tobytes() for content in contents)
    assert Path(url).read_bytes() == expected
    assert info.crc32 == zlib.crc32(expected)
    assert account.in_use_bytes() == account._taken == 0
    assert account.most_over <= 2 * BLOCK


def test_few_buffers_are_filled_again_and_again(tmp_path: Path) -> None:
    nbytes, account = 400 * BLOCK, Account(1 << 30)
    url, seen = str(tmp_path / "object"), set()
    with store_for(url).create(url, nbytes=nbytes) as writer:
        if not writer.early_block:
            pytest.skip("the file system takes no direct writes")
        assert account.try_acquire(nbytes)
        result = open_result(job_of(nbytes, DType.BF16), account, writer, 0, Stopwatch())
        for start in range(0, nbytes // 2, BLOCK):
            place = result.place(start, start + BLOCK)
            place[:] = 1
            seen.add(place.ctypes.data // (1 << 14))
        finish(writer, account, result.finish(0))
        writer.commit()
    assert len(seen) <= (results._PARTS + 1) * 6  # of the 100 that it would be


def test_a_part_that_cannot_be_written_fails_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    nbytes, account = 400 * BLOCK, Account(1 << 30)
    url = str(tmp_path / "object")
    with store_for(url).create(url, nbytes=nbytes) as writer:
        if not writer.early_block:
            pytest.skip("the file system takes no direct writes")
        monkeypatch.setattr(direct_io.DirectAppender, "write_at", fail)
        result = open_result(job_of(nbytes, DType.BF16), account, writer, 0, Stopwatch())

        def fill() -> None:
            for start in range(0, nbytes // 2, BLOCK):
                result.place(start, start + BLOCK)

        with pytest.raises(StorageError, match="Input/output"):
            fill()
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_the_disk_is_no_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_at = direct_io.DirectAppender.write_at

    def slow(*arguments: Any) -> None:
        time.sleep(0.03)
        write_at(*arguments)

    nbytes, account, watch = 160 * BLOCK, Account(1 << 30), Stopwatch()
    url = str(tmp_path / "object")
    with store_for(url).create(url, nbytes=nbytes) as writer:
        if not writer.early_block:
            pytest.skip("the file system takes no direct writes")
        monkeypatch.setattr(direct_io.DirectAppender, "write_at", slow)
        result = open_result(job_of(nbytes, DType.BF16), account, writer, 0, watch)
        with watch.timing("compute"):
            for start in range(0, nbytes // 2, BLOCK):
                result.place(start, start + BLOCK)
        result.finish(0)
    seconds = dict(watch.seconds())
    assert seconds["write"] > 0.06
    assert seconds["compute"] < seconds["write"] / 2


@pytest.mark.parametrize("position", [0, 100])
def test_no_buffer_has_more_pages_than_were_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """A part that begins within a block, and so ends behind a huge page, would have one more of those."""
    monkeypatch.setattr(results, "PART_BYTES", HUGE_PAGE_BYTES)
    mapped: list[int] = []
    monkeypatch.setattr(buffers, "map_huge_pages", lambda nbytes: [mapped.append(nbytes), map_huge_pages(nbytes)][1])
    nbytes, account = 5 * HUGE_PAGE_BYTES, Account(1 << 30)
    url = str(tmp_path / "object")
    with store_for(url).create(url, nbytes=position + nbytes) as writer:
        if not writer.early_block:
            pytest.skip("the file system takes no direct writes")
        result = open_result(job_of(nbytes, DType.BF16), account, writer, position, Stopwatch())
        for start in range(0, nbytes // 2, HUGE_PAGE_BYTES // 2):
            result.place(start, start + HUGE_PAGE_BYTES // 2)
        result.finish(0)
    assert all(each % HUGE_PAGE_BYTES == 0 for each in mapped)
    assert bool(mapped) == (position == 0)
