"""Whatever a store does to copies, the file has the right bytes or the merge ends with an error and continues later."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from fault_proxy import FaultProxy, start_proxy
from s3_server import S3Server, s3_env

import raymerge
from raymerge.errors import RaymergeError, StorageError
from raymerge.storage import CopyRange, base_name, retry, s3_writer, store_for
from raymerge.storage.s3 import S3Store, list_uploads
from raymerge.storage.s3_writer import SMALLEST_PART_BYTES

MIB = 1 << 20
SHAPE: dict[str, Any] = {"layers": 3, "hidden": 384, "heads": 6, "vocab": 512, "intermediate": 1024}
OPTIONS: dict[str, Any] = {"out_shard_size": "12MB", "executor": "inline"}


@pytest.fixture(autouse=True)
def _small_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_writer, "PART_BYTES", SMALLEST_PART_BYTES)
    monkeypatch.setattr(s3_writer, "COPY_PART_BYTES", SMALLEST_PART_BYTES)
    patience = retry.Patience(tries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)
    monkeypatch.setattr(retry, "PATIENCE", patience)
    monkeypatch.setattr("raymerge.execute.inline.RETRY_WAIT_SECONDS", 0.001)


@pytest.fixture(scope="module")
def recipe(s3_process: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    with s3_env(s3_process):
        root = s3_process.folder()
        for seed, name in enumerate("ab"):
            for path in write_llama(folder / name, seed=seed, **SHAPE).iterdir():
                store_for(root).put(f"{root}/{name}/{path.name}", path.read_bytes())
    slices = [{"sources": [{"model": f"{root}/{name}", "layer_range": [0, 3]}]} for name in "ab"]
    return {"merge_method": "passthrough", "slices": slices}


@pytest.fixture(scope="module")
def expected(s3_process: S3Server, recipe: dict[str, Any]) -> dict[str, str]:
    with s3_env(s3_process), pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Store, "copies_from", lambda self, url: False)
        out = s3_process.folder()
        raymerge.merge(recipe, out, **OPTIONS)
        return digest(out)


@pytest.fixture
def proxy(s3_process: S3Server) -> Iterator[FaultProxy]:
    with start_proxy(s3_process.endpoint) as proxy, s3_env(s3_process, AWS_ENDPOINT_URL=proxy.endpoint):
        proxy.slow_seconds = 0.02
        yield proxy


def digest(url: str) -> dict[str, str]:
    store = store_for(url)
    return {
        base_name(info.url): hashlib.sha256(store.read(info.url, max_bytes=1 << 30)).hexdigest()
        for info in store.list(url)
    }


def test_an_error_inside_a_200_is_an_error(s3: S3Server, proxy: FaultProxy, tmp_path: Path) -> None:
    """S3 answers 200 before it has copied; a failure then stands in the body."""
    data = bytes(range(256)) * (24 << 10)  # 6 MiB
    folder = s3.folder()
    source, url = f"{folder}/source.bin", f"{folder}/copy.bin"
    version = store_for(source).put(source, data).version
    proxy.break_at_random(seed=1, rate=1.0, faults=("error_in_200",))
    whole = CopyRange(url=source, offset=0, nbytes=len(data), version=version)
    with store_for(url).create(url, nbytes=len(data)) as writer:
        writer.copy(whole)
        with pytest.raises(StorageError, match="failed 3 times"):
            writer.commit()
    assert proxy.broken["error_in_200"] == 3
    proxy.break_at_random(seed=1, rate=0.0)
    assert list_uploads(folder) == []


@pytest.mark.parametrize("seed", range(int(os.environ.get("RAYMERGE_FAULT_SEEDS", "12"))))
def test_random_faults(proxy: FaultProxy, s3_process: S3Server, recipe, expected, seed: int) -> None:
    out = s3_process.folder()
    proxy.break_at_random(seed=seed, rate=0.15)
    try:
        raymerge.merge(recipe, out, **OPTIONS)
        ended = True
    except RaymergeError:
        ended = False
    proxy.break_at_random(seed=seed, rate=0.0)
    store = store_for(out)
    if ended:
        assert digest(out) == expected
        assert store.unfinished(out) == ()
        return
    for info in store.list(out):  # a shard is whole or not there
        if "-of-" in info.url:
            content = store.read(info.url, max_bytes=1 << 30)
            assert hashlib.sha256(content).hexdigest() == expected[base_name(info.url)]
    raymerge.merge(recipe, out, **OPTIONS)
    assert digest(out) == expected
    assert store.unfinished(out) == ()
