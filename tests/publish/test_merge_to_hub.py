"""A merge whose OUT is a model on the hub: what shows and when, what lies on the disk meanwhile, what is sent twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import write_llama
from hub_server import READ_TOKEN, TOKEN, HubServer
from merges import kill_when, start_merge, two_tune_recipe
from typer.testing import CliRunner

import raymerge
from raymerge.cli.app import app
from raymerge.errors import AccessError, PlanError, StorageError, UsageError
from raymerge.events import Event, TaskFinished
from raymerge.output.verify import verify
from raymerge.storage import hub_push, hub_spool
from raymerge.storage.retry import Patience

REPO = "user/merged"
OUT = f"hf://{REPO}"
OPTIONS: dict[str, Any] = {"executor": "inline", "out_shard_size": "30KB"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub-models")
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(folder / name, layers=3, seed=seed)
        (folder / name / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def local(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same merge writes into a folder."""
    out = tmp_path_factory.mktemp("hub-local") / "out"
    raymerge.merge(two_tune_recipe(models), out, **OPTIONS)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(autouse=True)
def spool(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of spools; and a token, plain uploads, and no long waits between tries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # read once, by whoever imports it first
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    patience = Patience(tries=4, first_wait_seconds=0.01, longest_wait_seconds=0.05)
    monkeypatch.setattr(hub_push, "PUSH_PATIENCE", patience)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return Path(os.environ[hub_spool.VARIABLE])


def published(hub: HubServer) -> dict[str, bytes]:
    return {name: data for name, data in hub.head(REPO).items() if name != ".gitattributes"}


def commits(hub: HubServer) -> int:
    """Commits but the one that made the repository."""
    return len(hub.models[REPO].commits) - 1


def shard_count(files: dict[str, bytes]) -> int:
    return sum(name.endswith(".safetensors") for name in files)


def large_count(files: dict[str, bytes]) -> int:
    return shard_count(files) + ("tokenizer.json" in files)


def files_in(spool: Path) -> list[Path]:
    return [path for path in spool.rglob("*") if path.is_file()]


def test_the_hub_gets_what_a_folder_would_in_one_commit(
    hub: HubServer, models: Path, local: dict[str, bytes], spool: Path
) -> None:
    result = raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert published(hub) == local
    assert commits(hub) == 1
    assert hub.models[REPO].private
    assert hub.count("upload") == large_count(local)
    assert (result.out, result.shard_count, result.kept_count) == (OUT, shard_count(local), 0)
    assert files_in(spool) == []
    assert verify(OUT, full=True).ok


def test_one_shard_lies_on_the_disk_and_none_shows(
    hub: HubServer, models: Path, local: dict[str, bytes], spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    send = hub_push.send_ahead

    def watched(repo: str, name: str, path: Path, *, sha256: bytes) -> bool:
        seen.append(len([each for each in files_in(spool) if each.suffix == ".safetensors"]))
        assert published(hub) == {}
        return send(repo, name, path, sha256=sha256)

    monkeypatch.setattr(hub_push, "send_ahead", watched)
    raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert seen == [1] * shard_count(local)


def test_the_same_command_goes_on_after_an_interruption(hub: HubServer, models: Path, local: dict[str, bytes]) -> None:
    finished: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, TaskFinished):
            finished.append(event.task)
            if len(finished) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raymerge.merge(two_tune_recipe(models), OUT, on_event=stop, **OPTIONS)
    assert published(hub) == {}
    before = hub.count("upload")
    assert before >= 2
    result = raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert result.kept_count == before
    assert hub.count("upload") == large_count(local)
    assert published(hub) == local
    assert commits(hub) == 1


def test_shards_that_may_hold_nan_are_made_again_and_sent_once(
    hub: HubServer, models: Path, local: dict[str, bytes]
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, TaskFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raymerge.merge(two_tune_recipe(models), OUT, on_event=stop, nan="warn", **OPTIONS)
    result = raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert result.kept_count == 0
    assert hub.count("upload") == large_count(local)
    assert published(hub) == local


def test_a_killed_merge_goes_on(hub: HubServer, models: Path, local: dict[str, bytes], spool: Path) -> None:
    process = start_merge(two_tune_recipe(models), OUT, seconds_per_tensor=0.05, **OPTIONS)
    kill_when(process, lambda: len(list(spool.rglob("*.safetensors.json"))) >= 2)
    sent = len(list(spool.rglob("*.safetensors.json")))
    result = raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert result.kept_count == sent
    assert hub.count("upload") <= large_count(local) + 1, "the one that was being sent"
    assert published(hub) == local
    assert files_in(spool) == []


def test_a_finished_merge_is_not_made_again(hub: HubServer, models: Path, local: dict[str, bytes]) -> None:
    raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    sent = hub.count("upload"), hub.count("commit")
    again = raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert again.kept_count == again.shard_count
    assert (hub.count("upload"), hub.count("commit")) == sent


def test_a_changed_card_alone_is_committed_alone(hub: HubServer, models: Path, local: dict[str, bytes]) -> None:
    raymerge.merge(two_tune_recipe(models), OUT, write_model_card=False, **OPTIONS)
    sent = hub.count("upload")
    raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert published(hub) == local
    assert (hub.count("upload"), commits(hub)) == (sent, 2)


def test_another_merge_is_replaced_only_when_asked(hub: HubServer, models: Path, local: dict[str, bytes]) -> None:
    other = two_tune_recipe(models, weights=(0.1, 0.2))
    raymerge.merge(other, OUT, **{**OPTIONS, "out_shard_size": "20KB"})
    sent = hub.count("upload")
    with pytest.raises(PlanError, match=r"user/merged: holds another merge .*--overwrite"):
        raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert hub.count("upload") == sent
    raymerge.merge(two_tune_recipe(models), OUT, overwrite=True, **OPTIONS)
    assert published(hub) == local
    assert commits(hub) == 2


def test_status_tells_how_far_it_is(hub: HubServer, models: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, TaskFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raymerge.merge(two_tune_recipe(models), OUT, on_event=stop, **OPTIONS)
    found = json.loads(CliRunner().invoke(app, ["status", OUT, "--json"]).stdout)
    assert found["state"] == "unfinished"
    assert 1 <= found["done_count"] < found["shard_count"]
    raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    found = json.loads(CliRunner().invoke(app, ["status", OUT, "--json"]).stdout)
    assert (found["state"], found["missing"]) == ("complete", [])


def test_content_that_the_hub_forgot_is_named_with_its_remedy(hub: HubServer, models: Path, spool: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, TaskFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raymerge.merge(two_tune_recipe(models), OUT, on_event=stop, **OPTIONS)
    hub.large_files.clear()
    with pytest.raises(StorageError, match=rf"400 LFS object .* was not uploaded; .*delete {spool}/"):
        raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert published(hub) == {}


@pytest.mark.parametrize("private", [True, False])
def test_who_may_see_it_must_be_as_it_is(hub: HubServer, models: Path, private: bool) -> None:
    hub.add_model(REPO, {"README.md": b"mine"}, private=not private)
    with pytest.raises(PlanError, match=r"user/merged: exists and is (public|private); add --"):
        raymerge.merge(two_tune_recipe(models), OUT, private=private, **OPTIONS)
    assert hub.count("upload") == hub.count("commit") == 0


def test_public_only_when_asked(hub: HubServer, models: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(two_tune_recipe(models)))
    runner = CliRunner()
    result = runner.invoke(app, ["merge", str(config), OUT, "--public", "--executor", "inline"])
    assert result.exit_code == 0, result.output
    assert not hub.models[REPO].private
    planned = runner.invoke(app, ["plan", str(config), OUT, "--json"])
    assert planned.exit_code == 0, planned.output


def test_a_plan_asks_nothing_of_the_repository_and_writes_nothing(hub: HubServer, models: Path, spool: Path) -> None:
    raymerge.plan(two_tune_recipe(models), OUT, **OPTIONS)
    assert REPO not in hub.models
    assert not spool.exists()


def test_without_a_token_nothing_is_done(hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PlanError, match="needs a token of the hub, and none is known"):
        raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert hub.requests == []


def test_a_token_that_may_not_write_is_refused_before_work(
    hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch, spool: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(AccessError, match="may not write to it"):
        raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert hub.count("upload") == 0
    assert files_in(spool) == []


@pytest.mark.parametrize("out", ["hf://user/name@main", "hf://user/name/folder", "hf://name"])
def test_only_a_whole_model_is_a_place(models: Path, out: str) -> None:
    with pytest.raises(UsageError, match=r"is no place for an output.*write hf://user/name"):
        raymerge.merge(two_tune_recipe(models), out, **OPTIONS)


@pytest.mark.parametrize("kind", ["preupload", "batch", "upload", "commit", "api"])
@pytest.mark.parametrize("status", [0, 429, 503])
def test_a_busy_hub_is_asked_again(
    hub: HubServer, models: Path, local: dict[str, bytes], kind: str, status: int
) -> None:
    hub.fail(kind, status, times=2 if status else 1, headers={"Retry-After": "0"} if status == 429 else {})
    raymerge.merge(two_tune_recipe(models), OUT, **OPTIONS)
    assert published(hub) == local
    assert commits(hub) == 1


def test_workers_of_a_private_ray_send_their_shards(
    hub: HubServer, models: Path, local: dict[str, bytes], spool: Path
) -> None:
    raymerge.merge(two_tune_recipe(models), OUT, **{**OPTIONS, "executor": "ray"})
    assert published(hub) == local
    assert hub.count("upload") == large_count(local)
    assert files_in(spool) == []
