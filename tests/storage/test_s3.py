"""What S3 adds: rights, multipart uploads, in-store copies, conditional requests, and every fault of a store."""

from __future__ import annotations

import logging
import os
import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader
from fault_proxy import FAULTS, Fault, FaultProxy, start_proxy
from s3_server import NEXT_KEY, S3Server, s3_env, write_keys

from raymerge.errors import AccessError, ChangedError, NotFoundError, StorageError, TransientStorageError
from raymerge.storage import (
    CopyRange,
    join_url,
    retry,
    s3,
    s3_client,
    s3_parts,
    store_for,
    traffic,
    transfer,
)
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import Limiter
from raymerge.storage.s3 import list_uploads
from raymerge.storage.s3_client import parse_s3_url
from raymerge.storage.s3_parts import MOST_PARTS, SMALLEST_PART_BYTES, buffered_bytes, part_bytes
from raymerge.storage.s3_writer import S3Writer

MIB = 1 << 20
DATA = random.Random(5).randbytes(21 * MIB + 11)  # two parts
SMALL = DATA[: 6 * MIB + 11]  # several of the parts that faulty stores get


@pytest.fixture
def proxy(
    s3_process: S3Server, impatient: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FaultProxy]:
    """A server that can be broken, and parts so small that MB-sized objects have several."""
    monkeypatch.setattr(s3_parts, "PART_BYTES", SMALLEST_PART_BYTES)
    monkeypatch.setattr(transfer, "PART_BYTES", 2 * MIB)
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("fault") in ("silent", "stalled"):
        monkeypatch.setattr(s3_client, "READ_TIMEOUT_SECONDS", 0.4)
    with start_proxy(s3_process.endpoint) as proxy, s3_env(s3_process, AWS_ENDPOINT_URL=proxy.endpoint):
        yield proxy


def put(url: str, data: bytes) -> str:
    with store_for(url).create(url, nbytes=len(data)) as writer:
        writer.write(data)
        return writer.commit().version


def begin_upload(server: S3Server, url: str) -> str:
    bucket, key = parse_s3_url(url)
    return server.client().create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]


def test_rights(s3: S3Server):
    url = join_url(s3.folder(), "model.bin")
    put(url, b"x")
    reader = {"AWS_ACCESS_KEY_ID": "reader-access", "AWS_SECRET_ACCESS_KEY": "reader-secret"}
    with s3_env(s3, **reader):
        store = store_for(url)
        assert store.read(url, max_bytes=1) == b"x"
        for write in (
            lambda: store.put(url, b"y"),
            lambda: store.probe(url, nbytes=1),
            lambda: store.put(url, DATA[: 17 * MIB]),
        ):
            with pytest.raises(AccessError, match=r"no access \(403 AccessDenied.*; check the credentials"):
                write()
    with s3_env(s3, AWS_SECRET_ACCESS_KEY="wrong"), pytest.raises(AccessError) as caught:
        store_for(url).read(url, max_bytes=1)
    assert "wrong" not in str(caught.value)
    assert store_for(url).read(url, max_bytes=1) == b"x"


def test_a_bucket_that_is_not_there(s3: S3Server):
    store = store_for("s3://nonesuch-bucket")
    with pytest.raises(NotFoundError, match="bucket does not exist"):
        store.list("s3://nonesuch-bucket/a")
    with pytest.raises(NotFoundError, match="bucket does not exist; create it"):
        store.probe("s3://nonesuch-bucket/a", nbytes=1)
    with pytest.raises(StorageError, match="an object was expected"):
        store.info("s3://nonesuch-bucket")


def test_keys_and_profiles_come_from_files_too(s3: S3Server, tmp_path: Path, monkeypatch):
    url = join_url(s3.folder(), "model.bin")
    put(url, b"x")
    (tmp_path / "credentials").write_text(
        f"[mine]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    (tmp_path / "config").write_text(f"[profile mine]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert store_for(url).read(url, max_bytes=1) == b"x"
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(StorageError, match="none"):
        store_for(url).read(url, max_bytes=1)


def test_the_checksum_of_the_whole_object_is_stored(s3: S3Server):
    for nbytes in (1000, len(DATA)):
        url = join_url(s3.folder(), "model.bin")
        put(url, DATA[:nbytes])
        assert store_for(url).info(url).crc32 == zlib.crc32(DATA[:nbytes])


def test_copies_stay_inside_the_store(s3: S3Server):
    folder = s3.folder()
    source = join_url(folder, "source.bin")
    version = put(source, DATA)
    url = join_url(folder, "copy.bin")
    before = traffic()
    with store_for(url).create(url, nbytes=1000 + len(DATA)) as writer:
        writer.write(DATA[:1000])
        for start in range(0, len(DATA), MIB):
            nbytes = min(MIB, len(DATA) - start)
            writer.copy(CopyRange(url=source, offset=start, nbytes=nbytes, version=version))
        info = writer.commit()
    after = traffic()
    assert info.crc32 == store_for(url).info(url).crc32 == zlib.crc32(DATA[:1000] + DATA)
    assert after.written_bytes - before.written_bytes == SMALLEST_PART_BYTES
    assert after.read_bytes - before.read_bytes == SMALLEST_PART_BYTES - 1000
    assert after.copied_bytes - before.copied_bytes == len(DATA) + 1000 - SMALLEST_PART_BYTES


def test_a_source_that_changes_before_its_copy(s3: S3Server):
    folder = s3.folder()
    source, url = join_url(folder, "source.bin"), join_url(folder, "copy.bin")
    version = put(source, DATA)
    put(source, DATA[::-1])
    with store_for(url).create(url, nbytes=len(DATA)) as writer:
        writer.copy(CopyRange(url=source, offset=0, nbytes=len(DATA), version=version))
        with pytest.raises(ChangedError, match=r"source\.bin: the object changed"):
            writer.commit()
    assert list_uploads(folder) == []


def test_unfinished_uploads_are_cleaned(s3: S3Server):
    folder = s3.folder()
    url, other = join_url(folder, "model.bin"), join_url(folder, "other.bin")
    begin_upload(s3, url)
    begin_upload(s3, url)
    begin_upload(s3, other)
    store = store_for(folder)
    assert store.unfinished(folder) == ("model.bin", "model.bin", "other.bin")
    assert store.clean(folder, names=("model.bin", "none")) == 2
    assert [left for left, _ in list_uploads(folder)] == [other]
    assert store.clean(folder, names=("other.bin",)) == 1


def test_an_upload_that_another_process_aborts(s3: S3Server):
    folder = s3.folder()
    url = join_url(folder, "model.bin")
    with store_for(url).create(url, nbytes=17 * MIB) as writer:
        writer.write(DATA[: 17 * MIB])
        writer._parts[0].result()
        store_for(url).clean(folder, names=("model.bin",))
        with pytest.raises(TransientStorageError, match="aborted by another process"):
            writer.commit()
    with pytest.raises(NotFoundError):
        store_for(url).info(url)


def test_a_completion_whose_answer_was_lost(s3: S3Server, monkeypatch):
    folder = s3.folder()
    url = join_url(folder, "model.bin")
    send = S3Writer._send_complete

    def send_and_lose(self: S3Writer, *arguments: object) -> None:
        send(self, *arguments)
        raise s3_client.UploadGoneError("what a second try is told")

    monkeypatch.setattr(S3Writer, "_send_complete", send_and_lose)
    put(url, DATA)
    assert store_for(url).read(url, max_bytes=len(DATA)) == DATA
    monkeypatch.setattr(S3Writer, "_send_complete", lambda *_: (_ for _ in ()).throw(s3_client.UploadGoneError("gone")))
    with pytest.raises(TransientStorageError, match=r"holds .* after the upload"):
        put(url, DATA[1:])


def test_an_abort_that_fails_is_said(s3: S3Server, proxy: FaultProxy, caplog):
    url = join_url(s3.folder(), "model.bin")
    writer = store_for(url).create(url, nbytes=len(DATA))
    writer.write(DATA)
    proxy.break_at_random(seed=1, rate=1.0, faults=("internal",))
    with caplog.at_level(logging.WARNING):
        writer.abort()
    assert "unfinished upload left behind" in caplog.text
    proxy.break_at_random(seed=1, rate=0.0)


@pytest.mark.parametrize("answer", ["refused", "part-wise", "ignored"])
def test_servers_without_checksums_of_whole_objects(s3: S3Server, monkeypatch, answer: str):
    folder = s3.folder()
    source, url = join_url(folder, "source.bin"), join_url(folder, "model.bin")
    version = put(source, DATA)
    create = S3Writer._create_upload

    def like_an_older_server(self: S3Writer, options: dict[str, str]) -> dict[str, str]:
        if options and answer == "refused":
            raise StorageError("the store answered 501 NotImplemented")
        found = create(self, {})
        return {**found, "ChecksumAlgorithm": "CRC32"} if options and answer == "part-wise" else found

    monkeypatch.setattr(S3Writer, "_create_upload", like_an_older_server)
    with store_for(url).create(url, nbytes=len(DATA) * 2) as writer:
        writer.write(DATA)
        writer.copy(CopyRange(url=source, offset=0, nbytes=len(DATA), version=version))
        writer.commit()
        assert not writer._checksums
    assert store_for(url).read(url, max_bytes=len(DATA) * 2) == DATA * 2
    assert list_uploads(folder) == []


def test_parts_fit_the_service():
    for nbytes in (1, 5 * MIB, 2 * 10**9, 160 * 10**9, 5 * 10**12):
        assert -(-nbytes // part_bytes(nbytes)) <= MOST_PARTS < 10_000
        assert part_bytes(nbytes) >= SMALLEST_PART_BYTES
        assert buffered_bytes(nbytes) <= 4 * part_bytes(nbytes)
    assert buffered_bytes(2 * 10**9) == 64 * MIB


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_changes_nothing(s3_process: S3Server, proxy: FaultProxy, fault: Fault):
    folder = s3_process.folder()
    url, copy = join_url(folder, "model.bin"), join_url(folder, "copy.bin")
    proxy.inject(fault)
    version = put(url, SMALL)
    proxy.inject(fault)
    buffer = bytearray(len(SMALL) - 3)
    store_for(url).read_into(url, buffer, offset=3, version=version)
    assert buffer == SMALL[3:]
    proxy.inject(fault)
    with store_for(copy).create(copy, nbytes=len(SMALL)) as writer:
        writer.write(SMALL[:1000])
        writer.copy(CopyRange(url=url, offset=1000, nbytes=len(SMALL) - 1000, version=version))
        assert writer.commit().crc32 == zlib.crc32(SMALL)
    assert store_for(copy).read(copy, max_bytes=len(SMALL)) == SMALL
    assert proxy.broken[fault] >= 1
    if fault == "lost":  # whoever never learns an upload's id cannot abort it
        assert store_for(url).clean(folder, names=("model.bin", "copy.bin")) <= 2
    assert list_uploads(folder) == []


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"slow", "error_in_200", "damaged", "lost", "expired"}))
def test_a_fault_that_stays_is_an_error(s3_process: S3Server, proxy: FaultProxy, fault: Fault):
    url = join_url(s3_process.folder(), "model.bin")
    version = put(url, SMALL)
    proxy.break_at_random(seed=1, rate=1.0, faults=(fault,))
    with pytest.raises(TransientStorageError, match="failed 3 times"):
        store_for(url).read_into(url, bytearray(5 * MIB), offset=1, version=version)


@pytest.mark.parametrize("fault", ["damaged", "internal", "reset", "error_in_200", "lost"])
def test_a_write_that_cannot_succeed_leaves_no_object(s3_process: S3Server, proxy: FaultProxy, fault: Fault):
    folder = s3_process.folder()
    url = join_url(folder, "model.bin")
    proxy.break_at_random(seed=1, rate=1.0, faults=(fault,))
    with pytest.raises(TransientStorageError):
        put(url, SMALL)
    proxy.break_at_random(seed=1, rate=0.0)
    with pytest.raises(NotFoundError):
        store_for(url).info(url)


def test_concurrency_falls_when_the_store_throttles_and_rises_again(
    s3_process: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    """The store's side of it: how many requests it sees at once."""
    limiter = Limiter(16)
    monkeypatch.setattr(s3_client, "read_limiter", PerProcess(lambda: limiter))
    monkeypatch.setattr(s3, "read_limiter", s3_client.read_limiter)
    monkeypatch.setattr(retry, "PATIENCE", retry.Patience(tries=50, first_wait_seconds=0.05, longest_wait_seconds=0.2))
    url = join_url(s3_process.folder(), "model.bin")
    version = put(url, DATA)
    buffer = bytearray(len(DATA))

    def most_at_once() -> int:
        proxy.reset_counts()
        store_for(url).read_into(url, buffer, offset=0, version=version)
        assert buffer == DATA
        return proxy.most_running

    monkeypatch.setattr(transfer, "PART_BYTES", 256 << 10)  # 84 requests
    proxy.break_at_random(seed=0, rate=1.0, faults=("slow",))
    proxy.slow_seconds = 0.2  # long enough for all of them to meet, however busy the machine is
    assert most_at_once() == 16
    proxy.slow_seconds = 0.02
    proxy.capacity = 4
    deadline = time.monotonic() + 30
    while limiter.limit >= 6:
        most_at_once()
        assert time.monotonic() < deadline
    proxy.broken.clear()
    assert most_at_once() <= 6
    assert proxy.broken["slowdown"] < 20  # of 84
    proxy.capacity = 0
    while limiter.limit < 16:
        most_at_once()
        assert time.monotonic() < deadline
    proxy.slow_seconds = 0.2
    assert most_at_once() == 16


def test_a_copy_that_fails_behind_a_200_is_an_error(s3_process: S3Server, proxy: FaultProxy):
    """S3 answers 200 before it has copied; a failure then stands in the body."""
    folder = s3_process.folder()
    source, url = join_url(folder, "source.bin"), join_url(folder, "copy.bin")
    version = put(source, SMALL)
    proxy.break_at_random(seed=1, rate=1.0, faults=("error_in_200",))
    proxy.broken.clear()
    with store_for(url).create(url, nbytes=len(SMALL)) as writer:
        writer.copy(CopyRange(url=source, offset=0, nbytes=len(SMALL), version=version))
        with pytest.raises(TransientStorageError, match="failed 3 times"):
            writer.commit()
    assert proxy.broken["error_in_200"] == 3
    proxy.break_at_random(seed=1, rate=0.0)
    assert list_uploads(folder) == []


def test_what_is_put_where_nothing_is_arrives_undamaged(s3_process: S3Server, proxy: FaultProxy):
    url = join_url(s3_process.folder(), "new.json")
    proxy.inject("damaged")
    assert store_for(url).put_new(url, b"{}\n")
    assert proxy.broken["damaged"] == 1
    assert store_for(url).read(url, max_bytes=9) == b"{}\n"


def test_requests_are_as_few_as_parts(s3_process: S3Server, proxy: FaultProxy):
    url = join_url(s3_process.folder(), "model.bin")
    version = put(url, SMALL)
    proxy.reset_counts()
    store_for(url).read_into(url, bytearray(len(SMALL)), offset=0, version=version)
    assert proxy.requests == {"GET": 3}
    assert proxy.bytes_down == len(SMALL)


@pytest.fixture
def keys(s3_process: S3Server, tmp_path: Path, proxy: FaultProxy) -> Iterator[Path]:
    """The file in which this process finds its keys, and which somebody else may rewrite."""
    path = tmp_path / "credentials"
    write_keys(path, s3_process.access_key, s3_process.secret_key)
    with s3_env(s3_process, keys=path, AWS_ENDPOINT_URL=proxy.endpoint):
        yield path


def test_credentials_that_expire_are_loaded_again(s3_process: S3Server, proxy: FaultProxy, keys: Path):
    """Whatever is asked first then: a range, an object's size (whose answer gives no reason), a part of an upload."""
    folder = s3_process.folder()
    url = join_url(folder, "model.bin")
    version = put(url, SMALL)
    buffer = bytearray(len(SMALL))
    asks = {
        "GET": lambda: store_for(url).read_into(url, buffer, offset=0, version=version),
        "HEAD": lambda: store_for(url).info(url),
        "PUT": lambda: put(join_url(folder, "second.bin"), SMALL),
    }
    used, other = (s3_process.access_key, s3_process.secret_key), NEXT_KEY
    for ask in asks.values():
        proxy.expire(used[0], then=lambda other=other: write_keys(keys, *other))
        ask()
        proxy.forgive(used[0])
        used, other = other, used
    assert proxy.broken["expired"] >= len(asks)
    assert buffer == SMALL
    assert store_for(folder).read(join_url(folder, "second.bin"), max_bytes=len(SMALL)) == SMALL


def test_credentials_that_stay_expired_are_an_error(s3_process: S3Server, proxy: FaultProxy, keys: Path):
    url = join_url(s3_process.folder(), "model.bin")
    version = put(url, SMALL)
    proxy.expire(s3_process.access_key)
    proxy.reset_counts()
    with pytest.raises(AccessError, match=r"credentials have expired \(ExpiredToken\); renew them"):
        store_for(url).read_into(url, bytearray(MIB), offset=0, version=version)
    assert proxy.requests.total() == 1
    with pytest.raises(AccessError, match="credentials have expired"):
        put(url, SMALL)


def test_what_clients_are_made_from_is_read_once(s3_process: S3Server, keys: Path, monkeypatch: pytest.MonkeyPatch):
    """Credentials may expire for many processes of a node at once."""
    url = join_url(s3_process.folder(), "model.bin")
    put(url, SMALL)
    read: list[str] = []
    load = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path) or load(self, path))
    write_keys(keys, *NEXT_KEY)
    monkeypatch.setenv("AWS_PROFILE", "default")  # another environment: another client
    store_for(url).info(url)
    assert read == []


def test_no_credentials_means_an_unsigned_request(s3: S3Server, monkeypatch):
    url = join_url(s3.folder(), "model.bin")
    put(url, b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", os.devnull)
    with pytest.raises(AccessError, match="check the credentials"):  # this bucket is not public
        store_for(url).read(url, max_bytes=1)
