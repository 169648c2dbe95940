"""On Ray the same laws hold: the same bytes as inline, and whatever is killed, the same command finishes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from merges import folder_digest, kill_when, start_merge, two_tune_recipe
from s3_server import S3Server

import raymerge
from raymerge.events import Event, RunFinished, TaskFinished
from raymerge.storage import store_for


@pytest.fixture(scope="module")
def shared_ray(s3_process: S3Server) -> Iterator[None]:
    """One private Ray for the module, its workers able to reach the S3 server."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_process.env.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def upload(folder: Path, url: str) -> None:
    store = store_for(url)
    for model in sorted(folder.iterdir()):
        for path in sorted(model.iterdir()):
            store.put(f"{url}/{model.name}/{path.name}", path.read_bytes())


def s3_digest(server: S3Server, url: str) -> dict[str, str]:
    """Content by name; a large object's etag depends on its parts, so the bytes are read."""
    import hashlib

    store = store_for(url)
    infos = store.list(url)
    return {
        info.url.rsplit("/", 1)[-1]: hashlib.sha256(store.read(info.url, max_bytes=1 << 30)).hexdigest()
        for info in infos
    }


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_ray_writes_the_bytes_that_inline_writes(models: Path, tmp_path: Path, method: str) -> None:
    recipe = two_tune_recipe(models, method)
    raymerge.merge(recipe, tmp_path / "inline", executor="inline", out_shard_size="1MB")
    events: list[Event] = []
    raymerge.merge(recipe, tmp_path / "two workers", out_shard_size="1MB", on_event=events.append)
    raymerge.merge(recipe, tmp_path / "one worker", out_shard_size="1MB", task_cpus=2)
    inline = folder_digest(tmp_path / "inline")
    assert folder_digest(tmp_path / "two workers") == inline
    assert folder_digest(tmp_path / "one worker") == inline
    assert sum(isinstance(event, TaskFinished) for event in events) == len(
        list((tmp_path / "inline").glob("model-*-of-*"))
    )
    assert isinstance(events[-1], RunFinished)


@pytest.mark.usefixtures("shared_ray")
def test_merge_works_inside_a_ray_task(models: Path, tmp_path: Path) -> None:
    import ray

    recipe = two_tune_recipe(models)

    @ray.remote(num_cpus=0)
    def inside(config: dict[str, Any], out: str) -> int:
        return raymerge.merge(config, out, out_shard_size="1MB").shard_count

    count = ray.get(inside.remote(recipe, str(tmp_path / "inside")))
    raymerge.merge(recipe, tmp_path / "outside", executor="inline", out_shard_size="1MB")
    assert count > 1
    assert folder_digest(tmp_path / "inside") == folder_digest(tmp_path / "outside")


@pytest.mark.usefixtures("shared_ray")
def test_s3_to_s3_on_ray_and_inline_and_a_resume_keeps_shards(s3: S3Server, models: Path) -> None:
    root = s3.folder()
    upload(models, f"{root}/models")
    recipe = two_tune_recipe(f"{root}/models", "dare_ties")
    raymerge.merge(recipe, f"{root}/ray", out_shard_size="1MB")
    raymerge.merge(recipe, f"{root}/inline", out_shard_size="1MB", executor="inline")
    expected = s3_digest(s3, f"{root}/ray")
    assert s3_digest(s3, f"{root}/inline") == expected
    # A driver that died before the index: the last shard and the success marker are not there.
    last = max(name for name in expected if "-of-" in name)
    store = store_for(root)
    manifest = json.loads(store.read(f"{root}/ray/raymerge.json", max_bytes=1 << 20))
    for name in (last, "model.safetensors.index.json"):
        store.delete(f"{root}/ray/{name}")
    running = {**manifest, "state": "running"}
    running["shards"] = [{key: value for key, value in each.items() if key != "crc32"} for each in manifest["shards"]]
    store.put(f"{root}/ray/raymerge.json", json.dumps(running).encode())
    result = raymerge.merge(recipe, f"{root}/ray", out_shard_size="1MB")
    assert result.kept_count == result.shard_count - 1
    assert s3_digest(s3, f"{root}/ray") == expected


def test_s3_a_killed_process_group_is_continued(s3: S3Server, models: Path) -> None:
    root = s3.folder()
    upload(models, f"{root}/models")
    recipe = two_tune_recipe(f"{root}/models")
    options = {"executor": "inline", "out_shard_size": "200KB"}
    raymerge.merge(recipe, f"{root}/undisturbed", **options)
    out, store = f"{root}/out", store_for(root)
    process = start_merge(recipe, out, seconds_per_tensor=0.1, task_cpus=1, **options)
    kill_when(process, lambda: sum("-of-" in info.url for info in store.list(out)) >= 3)
    finished = {info.url: (info.version, info.modified) for info in store.list(out) if "-of-" in info.url}
    result = raymerge.merge(recipe, out, **options)
    assert 3 <= result.kept_count < result.shard_count
    now = {info.url: (info.version, info.modified) for info in store.list(out)}
    assert all(now[url] == before for url, before in finished.items())
    assert s3_digest(s3, out) == s3_digest(s3, f"{root}/undisturbed")
    assert not store.unfinished(out)


def test_a_killed_driver_with_its_own_ray_is_continued(models: Path, tmp_path: Path) -> None:
    recipe = two_tune_recipe(models, "dare_ties")
    raymerge.merge(recipe, tmp_path / "undisturbed", executor="inline", out_shard_size="100KB")
    out = tmp_path / "out"
    process = start_merge(recipe, out, out_shard_size="100KB")
    kill_when(process, lambda: len(list(out.glob("model-*-of-*"))) >= 2)
    finished = {path.name: path.stat().st_ino for path in out.glob("model-*-of-*")}
    result = raymerge.merge(recipe, out, out_shard_size="100KB")
    assert result.kept_count >= len(finished)
    assert all((out / name).stat().st_ino == inode for name, inode in finished.items())
    assert folder_digest(out) == folder_digest(tmp_path / "undisturbed")
