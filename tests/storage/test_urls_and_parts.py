"""URLs, checksums of parts, retries: the small laws under every store."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.errors import StorageError, TransientStorageError
from raymerge.storage import (
    base_name,
    crc32_combine,
    is_local,
    join_url,
    normalize_url,
    parent_url,
    redact,
    store_for,
)
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import Again, Limiter, Patience, attempt
from raymerge.storage.transfer import near_split, read_parts, split

FAST = Patience(tries=4, first_wait_seconds=0.001, longest_wait_seconds=0.002)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out", "/work/out"),
        ("./a/../b/", "/work/b"),
        ("/x//y/", "/x/y"),
        ("/", "/"),
        ("file:///x/y%20z", "/x/y z"),
        ("s3://bucket/a/b//", "s3://bucket/a/b"),
        ("S3A://bucket/a", "s3://bucket/a"),
        ("hf://org/name@main/", "hf://org/name@main"),
    ],
)
def test_one_spelling_of_a_location(text, expected):
    assert normalize_url(text, cwd="/work") == expected
    assert normalize_url(expected, cwd="/elsewhere") == expected


def test_home_and_working_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert normalize_url("~/m") == "/home/me/m"
    assert normalize_url("m") == str(tmp_path / "m")


@given(st.lists(st.text("ab.-_é@", min_size=1).filter(lambda name: name not in (".", "..")), min_size=1, max_size=4))
def test_a_name_joined_is_the_base_name(parts):
    for root in ("/root", "s3://bucket", "hf://org/name@main"):
        url = root
        for part in parts:
            assert base_name(join_url(url, part)) == part
            assert parent_url(join_url(url, part)) == url
            url = join_url(url, part)
        assert is_local(url) == root.startswith("/")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "s3://other/x"])
def test_names_stay_inside_the_folder(name):
    with pytest.raises(ValueError, match="not a name inside"):
        join_url("/root", name)


def test_no_secret_survives_redaction():
    signed = "https://cdn.example/a/b?X-Amz-Signature=SECRET&Expires=5"
    text = f"GET {signed} failed; url: /a/b?sig=SECRET token hf_SECRETSECRET Bearer SECRET s3://key:SECRET@bucket/x"
    assert "SECRET" not in redact(text)
    assert "https://cdn.example/a/b" in redact(text)
    assert "s3://bucket/x" in redact(text)
    for plain in ("s3://bucket/a b", "hf://org/name@main/f", "hf://gpt2@abc/f", "/a/b", "what? no"):
        assert redact(plain) == plain


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_combine(first, second):
    combined = crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


def test_checksums_combine_over_long_parts():
    zeros = bytes(5_000_000)
    assert crc32_combine(zlib.crc32(b"a"), zlib.crc32(zeros), len(zeros)) == zlib.crc32(b"a" + zeros)
    total = zlib.crc32(zeros)
    for _ in range(3):  # 40 MB from halves
        total, zeros = crc32_combine(total, total, len(zeros)), zeros + zeros
    assert total == zlib.crc32(zeros)


@given(st.integers(1, 10_000), st.integers(1, 700))
def test_parts_cover_the_range_once(nbytes, part):
    pieces = split(nbytes, part)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == nbytes
    assert all(first[1] == second[0] for first, second in itertools.pairwise(pieces))
    assert all(0 < end - start <= part for start, end in pieces)


@given(st.integers(1, 10_000), st.integers(20, 700))
def test_requests_are_near_their_size(nbytes, part):
    pieces = near_split(nbytes, part)
    assert (pieces[0][0], pieces[-1][1]) == (0, nbytes)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(pieces))
    lengths = [end - start for start, end in pieces]
    assert max(lengths) <= part * 1.5 + 1
    assert len(pieces) == 1 or min(lengths) >= part * 0.75 - 1


def test_a_failed_part_stops_the_others_and_none_writes_afterwards():
    running = threading.Semaphore(0)
    finished = []

    def fetch(view: memoryview, offset: int, stop: threading.Event) -> None:
        if offset == 0:
            running.acquire()
            raise StorageError("the first part broke")
        running.release()
        assert stop.wait(10)
        finished.append(offset)

    with pytest.raises(StorageError, match="the first part broke"):
        read_parts(fetch, memoryview(bytearray(40)), 0, part_bytes=10)
    started = len(finished)
    time.sleep(0.05)
    assert len(finished) == started >= 1


def test_again_and_again_then_an_error():
    calls = []

    def fail() -> None:
        calls.append(1)
        raise Again("503 for https://x.y/z?sig=SECRET")

    with pytest.raises(TransientStorageError, match=r"s3://b/k: failed 4 times .* 503") as caught:
        attempt(fail, url="s3://b/k", limiter=Limiter(4), patience=FAST)
    assert len(calls) == 4
    assert "SECRET" not in str(caught.value)


def test_patience_is_bounded_in_time():
    def fail() -> None:
        raise Again("429", throttled=True, wait_seconds=100.0)

    started = time.monotonic()
    with pytest.raises(TransientStorageError):
        attempt(fail, url="x", limiter=Limiter(4), patience=Patience(total_seconds=50.0))
    assert time.monotonic() - started < 5


def test_concurrency_falls_on_throttling_and_rises_again():
    limiter = Limiter(32)
    answers = iter([Again("503", throttled=True)])

    def once() -> None:
        for fault in answers:
            raise fault

    attempt(once, url="x", limiter=limiter, patience=FAST)
    assert 16 <= limiter.limit < 17
    limiter.throttled(5.0)  # began before that: one signal
    assert limiter.limit >= 16
    limiter.throttled()  # began after it
    assert 8 <= limiter.limit < 9
    for _ in range(2000):
        attempt(lambda: None, url="x", limiter=limiter)
    assert limiter.limit == 32


def test_the_limit_holds():
    limiter = Limiter(3)
    now, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        with limiter:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.005)
            with lock:
                now[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_makes_its_own_and_takes_no_lock_along():
    made = []
    value = PerProcess(lambda: made.append(os.getpid()) or os.getpid())
    assert value.get() == os.getpid()
    with value._lock:  # another thread may hold it at the moment of the fork
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # a lock taken along would be waited for without end
            os._exit(0 if value.get() == os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert value.get() == os.getpid()


def test_importing_the_package_imports_no_client():
    urls = ["/x", "s3://bucket/x", "hf://org/name"]
    code = f"import sys, raymerge.storage as s; [s.store_for(url) for url in {urls}]; print(list(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("botocore", "fsspec", "huggingface_hub", "urllib3", "torch", "numpy", "ray'"):
        assert f"'{heavy}" not in loaded


def test_an_unknown_scheme_and_a_missing_driver(monkeypatch):
    with pytest.raises(StorageError, match="is no kind of location"):
        store_for("nope://x").info("nope://x/y")
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(StorageError, match="pip install gcsfs"):
            store_for("gs://x").info("gs://x/y")
