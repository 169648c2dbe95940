"""Layers that are stacked inside one store: its bytes stay there, no worker is needed, and nothing else differs."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import write_llama
from merges import kill_when, start_code
from s3_server import S3Server, s3_env

import raymerge
from raymerge.errors import ChangedError
from raymerge.events import Event, Message, TaskFinished
from raymerge.planning.copies import movement, needs_no_worker
from raymerge.storage import CopyRange, base_name, s3_client, s3_parts, s3_writer, store_for, traffic
from raymerge.storage.retry import Limiter
from raymerge.storage.s3 import S3Store
from raymerge.storage.s3_writer import S3Writer

MIB = 1 << 20
SHAPE: dict[str, Any] = {"layers": 4, "hidden": 512, "heads": 8, "vocab": 2048, "intermediate": 1536}
OPTIONS: dict[str, Any] = {"out_shard_size": "30MB"}  # four layers and a bit


@pytest.fixture(scope="module")
def models(s3_process: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`a` in several files and `b` in one, both bfloat16, and `c` in float32."""
    folder = tmp_path_factory.mktemp("models")
    write_llama(folder / "a", seed=0, shard_bytes=16_000_000, **SHAPE)
    write_llama(folder / "b", seed=1, **SHAPE)
    write_llama(folder / "c", seed=2, dtype="float32", **SHAPE)
    with s3_env(s3_process):
        root = s3_process.folder()
        for path in sorted(folder.glob("*/*")):
            store_for(root).put(f"{root}/{path.parent.name}/{path.name}", path.read_bytes())
    return root


def stacked(models: str, *slices: tuple[str, int, int], **keys: Any) -> dict[str, Any]:
    each = [{"sources": [{"model": f"{models}/{model}", "layer_range": [first, end]}]} for model, first, end in slices]
    return {"merge_method": "passthrough", "slices": each, **keys}


def frankenmerge(models: str) -> dict[str, Any]:
    return stacked(models, ("a", 0, 4), ("b", 1, 4), ("a", 1, 3), ("b", 2, 4))


def digest(url: str) -> dict[str, str]:
    store = store_for(url)
    return {
        base_name(info.url): hashlib.sha256(store.read(info.url, max_bytes=1 << 30)).hexdigest()
        for info in store.list(url)
    }


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A store that copies nothing by itself: every byte passes through this process."""
    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "copies_from", lambda self, url: False)
        yield patch


@pytest.fixture(scope="module")
def streamed(s3_process: S3Server, models: str) -> dict[str, str]:
    """Digests of the frankenmerge's files as the streaming path writes them."""
    with s3_env(s3_process), pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Store, "copies_from", lambda self, url: False)
        out = s3_process.folder()
        before = traffic()
        raymerge.merge(frankenmerge(models), out, executor="inline", **OPTIONS)
        assert traffic().copied_bytes == before.copied_bytes
        return digest(out)


def test_same_files_as_streamed_without_ray_and_as_planned(
    s3: S3Server, models: str, streamed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymerge.execute.ray.session import RaySession

    monkeypatch.setattr(RaySession, "start", lambda self: pytest.fail("Ray is not needed"))
    out = s3.folder()
    planned = raymerge.plan(frankenmerge(models), out, **OPTIONS)
    moved = movement(planned.shards, store_for(out))
    events: list[Event] = []
    before = traffic()
    result = raymerge.merge(frankenmerge(models), out, on_event=events.append, **OPTIONS)
    after = traffic()
    assert result.shard_count == len(planned.shards) == 3
    assert sum(isinstance(event, TaskFinished) for event in events) == 3
    assert digest(out) == streamed
    assert after.copied_bytes - before.copied_bytes == moved.copied_bytes > 0.5 * moved.output_bytes
    small = 1_000_000  # headers of inputs, tokenizer, config, index, manifest
    assert 0 <= after.read_bytes - before.read_bytes - moved.read_bytes < small
    assert 0 <= after.written_bytes - before.written_bytes - moved.written_bytes < small


def test_files_tell_the_checksum_in_the_manifest(s3: S3Server, models: str) -> None:
    import json

    out = s3.folder()
    raymerge.merge(frankenmerge(models), out, **OPTIONS)
    store = store_for(out)
    manifest = json.loads(store.read(f"{out}/raymerge.json", max_bytes=MIB))
    for shard in manifest["shards"]:
        assert store.info(f"{out}/{shard['file']}").crc32 == int(shard["crc32"], 16)


def test_ray_is_not_imported(s3: S3Server, models: str) -> None:
    code = (
        "import json, sys, raymerge\n"
        "raymerge.merge(json.loads(sys.argv[1]), sys.argv[2], out_shard_size='30MB')\n"
        "print([name for name in ('ray', 'torch', 'numba') if name in sys.modules])"
    )
    import json

    command = [sys.executable, "-c", code, json.dumps(frankenmerge(models)), s3.folder()]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["[]"]


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_mixed_shards_mix(s3: S3Server, models: str, streaming: pytest.MonkeyPatch, executor: str) -> None:
    """Layers of `c` are rounded to bfloat16 by workers; shards without one are copied by the driver meanwhile."""
    recipe = stacked(models, ("a", 0, 4), ("b", 0, 4), ("c", 0, 2), ("a", 2, 4), dtype="bfloat16")
    expected = s3.folder()
    raymerge.merge(recipe, expected, executor="inline", **OPTIONS)
    streaming.undo()
    out = s3.folder()
    planned = raymerge.plan(recipe, out, **OPTIONS)
    moved = movement(planned.shards, store_for(out))
    before = traffic()
    raymerge.merge(recipe, out, executor=executor, **OPTIONS)
    copied = traffic().copied_bytes - before.copied_bytes  # by this process: on Ray, a mixed shard's copies are not
    copying = movement([shard for shard in planned.shards if needs_no_worker(shard, store_for(out))], store_for(out))
    assert copied == (moved if executor == "inline" else copying).copied_bytes
    assert 0 < copying.copied_bytes < moved.copied_bytes
    assert digest(out) == digest(expected)


def test_a_store_that_tells_no_checksum_of_copies_is_read_back_once(
    s3: S3Server, models: str, streamed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = S3Writer._create_upload
    monkeypatch.setattr(S3Writer, "_create_upload", lambda self, options: create(self, {}))
    out = s3.folder()
    messages: list[str] = []
    before = traffic()
    raymerge.merge(
        frankenmerge(models),
        out,
        on_event=lambda event: messages.append(event.text) if isinstance(event, Message) else None,
        **OPTIONS,
    )
    read_bytes = traffic().read_bytes - before.read_bytes
    assert digest(out) == streamed
    planned = raymerge.plan(frankenmerge(models), **OPTIONS)
    moved = movement(planned.shards, store_for(out))
    assert 0 <= read_bytes - moved.read_bytes - moved.output_bytes < 1_000_000
    assert ["read back for their checksum" in text for text in messages] == [True]


def test_a_source_that_changes_meanwhile_is_an_error(
    s3: S3Server, models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = S3Writer.copy
    monkeypatch.setattr(
        S3Writer,
        "copy",
        lambda self, source: copy(self, CopyRange(**{**_fields(source), "version": '"another"'})),
    )
    out = s3.folder()
    with pytest.raises(ChangedError, match="changed since planning"):
        raymerge.merge(frankenmerge(models), out, **OPTIONS)
    assert store_for(out).unfinished(out) == ()
    assert not [name for name in digest(out) if name.endswith(".safetensors")]


def _fields(source: CopyRange) -> dict[str, Any]:
    return {name: getattr(source, name) for name in ("url", "offset", "nbytes", "version")}


# Copies after the first few take longer than the test.
SLOW_COPIES = """
import json, sys, threading, raymerge
from raymerge.storage import s3_writer
plain, done, lock = s3_writer.S3Writer._copy_part, [], threading.Lock()
def copy_part(self, number, source):
    with lock:
        done.append(number)
    if len(done) > 2:
        self._stop.wait(120)
    return plain(self, number, source)
s3_writer.S3Writer._copy_part = copy_part
raymerge.merge(json.loads(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))
"""


def begun(out: str) -> bool:
    store = store_for(out)
    return any("-of-" in info.url for info in store.list(out)) and bool(store.unfinished(out))


def test_a_killed_driver_is_continued(
    s3: S3Server, models: str, streamed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymerge.execute.ray.session import RaySession

    monkeypatch.setattr(RaySession, "start", lambda self: pytest.fail("the store knows the finished shards' checksums"))
    out = s3.folder()
    process = start_code(SLOW_COPIES, frankenmerge(models), out, **OPTIONS)
    kill_when(process, lambda: begun(out))
    store = store_for(out)
    assert store.unfinished(out)
    finished = {info.url: (info.version, info.modified) for info in store.list(out) if "-of-" in info.url}
    result = raymerge.merge(frankenmerge(models), out, **OPTIONS)
    assert 1 <= result.kept_count == len(finished) < result.shard_count
    now = {info.url: (info.version, info.modified) for info in store.list(out)}
    assert all(now[url] == before for url, before in finished.items())
    assert digest(out) == streamed
    assert store.unfinished(out) == ()


def test_an_interrupt_ends_copies_within_seconds_and_leaves_no_upload(s3: S3Server, models: str) -> None:
    out = s3.folder()
    process = start_code(SLOW_COPIES, frankenmerge(models), out, **OPTIONS)
    deadline = time.monotonic() + 60
    while not begun(out):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    interrupted = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert time.monotonic() - interrupted < 6
    assert store_for(out).unfinished(out) == ()


def test_hundreds_of_copies_are_under_way_and_no_more_than_allowed(
    s3: S3Server, models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is left out: what is counted is how many requests this process sends at once."""
    running, peak, lock = 0, 0, threading.Lock()

    def copy_part(self: S3Writer, number: int, source: CopyRange) -> s3_writer._Part:
        nonlocal running, peak
        with limiter:
            with lock:
                running += 1
                peak = max(peak, running)
            time.sleep(0.02)
            with lock:
                running -= 1
        limiter.succeeded(0.02)
        return s3_writer._Part(number=number, nbytes=source.nbytes, etag="", crc32=0)

    limiter = s3_client.copy_limiter.get().__class__(s3_client.COPIES, start=8, slow_seconds=10)
    monkeypatch.setattr(S3Writer, "_copy_part", copy_part)
    monkeypatch.setattr(s3_parts, "COPY_PART_BYTES", 5 * MIB)
    url = f"{s3.folder()}/model.bin"
    with store_for(url).create(url, nbytes=4_000 * 5 * MIB) as writer:
        for start in range(0, 4_000, 1_000):
            source = f"s3://elsewhere/{start}"
            writer.copy(CopyRange(url=source, offset=0, nbytes=5_000 * MIB, version="v"))
        writer.settle(lambda: None)
    assert 200 <= peak <= s3_client.COPIES


def test_copies_that_take_long_are_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("raymerge.storage.retry.time.monotonic", lambda: now)
    limiter = Limiter(256, start=8, slow_seconds=10.0)
    for _ in range(56):
        limiter.succeeded(1.0)
    assert limiter.limit == 64  # doubles per round
    limiter.succeeded(6.0)
    assert limiter.limit == 64  # the store is busy enough
    for _ in range(40):
        now += 0.1
        limiter.succeeded(12.0)  # all of these began before the first of them told how slow the store is
    assert limiter.limit == 32
    now += 12.0
    limiter.succeeded(11.0)
    assert limiter.limit == 16
    limiter.succeeded(1.0)
    assert 16 < limiter.limit < 16.1  # from now on by one per round
