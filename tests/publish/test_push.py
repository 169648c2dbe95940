"""Publishing a finished merge: what shows on the hub, when it shows, what is sent twice (nothing), what is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from hub_server import READ_TOKEN, TOKEN, HubServer
from merges import two_tune_recipe
from s3_server import S3Server
from typer.testing import CliRunner

import raymerge
import raymerge.output.push as push_module
from raymerge.checkpoint.open import open_checkpoint
from raymerge.cli.app import app
from raymerge.errors import (
    AccessError,
    ChangedError,
    PlanError,
    StorageError,
    TransientStorageError,
    UsageError,
    VerifyError,
)
from raymerge.events import Event
from raymerge.output.push import PushResult, push
from raymerge.output.verify import verify
from raymerge.storage import hub_push, store_for
from raymerge.storage.retry import Patience

REPO = "user/merged"
WRITES = ("create", "validate", "preupload", "batch", "upload", "commit")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(folder / name, layers=3, seed=seed)
    return folder


@pytest.fixture(scope="session")
def merged(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    raymerge.merge(two_tune_recipe(models), out, executor="inline", out_shard_size="30KB")
    assert len(list(out.glob("*.safetensors"))) >= 3
    return out


@pytest.fixture
def out(merged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(merged, tmp_path / "out")


@pytest.fixture(autouse=True)
def hasty(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token, plain uploads, and no long waits between tries, huggingface_hub's own included."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # read once, by whoever imports it first
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    patience = Patience(tries=4, first_wait_seconds=0.01, longest_wait_seconds=0.05)
    monkeypatch.setattr(hub_push, "PUSH_PATIENCE", patience)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(hub: HubServer, repo: str = REPO) -> dict[str, bytes]:
    return {name: data for name, data in hub.head(repo).items() if name != ".gitattributes"}


def commits(hub: HubServer, repo: str = REPO) -> int:
    """Commits but the one that made the repository."""
    return len(hub.models[repo].commits) - 1


def large_files(folder: Path) -> int:
    return len([path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name == "tokenizer.json"])


def test_the_whole_output_shows_in_one_commit_and_to_its_owner_alone(hub: HubServer, out: Path) -> None:
    result = push(str(out), REPO)
    assert published(hub) == contents(out)
    assert "model.safetensors.index.json" in published(hub)
    assert commits(hub) == 1
    assert hub.models[REPO].private
    assert hub.count("upload") == large_files(out)
    shards = len(list(out.glob("*.safetensors")))
    assert result == PushResult(
        url=f"{hub.endpoint}/{REPO}", commit=hub.models[REPO].refs["main"], is_private=True,
        shard_count=shards, kept_count=0, nbytes=sum(path.stat().st_size for path in out.glob("*.safetensors")),
    )  # fmt: skip
    assert verify(f"hf://{REPO}", full=True).ok
    assert open_checkpoint(REPO, revision=None, display="m", cwd="/").commit == result.commit


def test_public_only_when_asked(hub: HubServer, out: Path) -> None:
    events: list[Event] = []
    push(str(out), f"hf://{REPO}", private=False, on_event=events.append)
    assert "everyone will see where inputs lay (/" in str(events[0])
    assert not hub.models[REPO].private
    with pytest.raises(PlanError, match=r"user/merged: exists and is public; add --public"):
        push(str(out), REPO)
    assert commits(hub) == 1


def test_a_private_model_is_not_published_by_a_slip(hub: HubServer, out: Path) -> None:
    hub.add_model(REPO, {"README.md": b"mine"}, private=True)
    with pytest.raises(PlanError, match=r"exists and is private; add --private"):
        push(str(out), REPO, private=False)
    assert commits(hub) == 0


def test_a_second_push_sends_and_commits_nothing(hub: HubServer, out: Path) -> None:
    first = push(str(out), REPO)
    sent = hub.count("upload"), hub.count("batch"), hub.count("commit")
    second = push(str(out), REPO)
    assert (hub.count("upload"), hub.count("batch"), hub.count("commit")) == sent
    assert second.commit == first.commit
    assert second.kept_count == second.shard_count


@pytest.mark.parametrize("after", [1, 2])
def test_a_push_that_died_goes_on_where_it_was(hub: HubServer, out: Path, after: int) -> None:
    seen: list[Event] = []

    def die(event: Event) -> None:
        seen.append(event)
        if len(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(str(out), REPO, on_event=die)
    assert published(hub) == {}
    assert hub.count("upload") == after
    push(str(out), REPO)
    assert hub.count("upload") == large_files(out)
    assert published(hub) == contents(out)
    assert commits(hub) == 1


@pytest.mark.parametrize("kind", [*WRITES, "api"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: HubServer, out: Path, kind: str, status: int) -> None:
    hub.fail(kind, status, times=2, headers={"Retry-After": "0"} if status == 429 else {})
    push(str(out), REPO)
    assert published(hub) == contents(out)
    assert commits(hub) == 1
    assert hub.count("upload") == large_files(out) + 2 * (kind == "upload")


@pytest.mark.parametrize("kind", [*WRITES, "api"])
def test_an_answer_cut_in_half_is_asked_for_again_and_nothing_is_done_twice(
    hub: HubServer, out: Path, kind: str
) -> None:
    hub.fail(kind, 0)
    push(str(out), REPO)
    assert published(hub) == contents(out)
    assert commits(hub) == 1
    assert hub.count("upload") <= large_files(out) + (kind == "upload")


@pytest.mark.parametrize("kind", ["preupload", "upload", "commit"])
def test_a_hub_that_stays_busy_fails_with_nothing_shown(hub: HubServer, out: Path, kind: str) -> None:
    hub.fail(kind, 429, times=500)
    with pytest.raises(TransientStorageError, match=r"429.*; run the same command again"):
        push(str(out), REPO)
    assert published(hub) == {}
    assert commits(hub) == 0


def test_without_a_token_nothing_is_asked(hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AccessError, match=r"needs a token of the hub, and none is known; run `hf auth login`, or set"):
        push(str(out), REPO)
    assert hub.requests == []


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("hf_nobodyknowsthisone", "does not know this token"),
        (READ_TOKEN, "this token may not write to it.*write access"),
    ],
)
def test_a_token_without_rights_is_refused_before_a_byte_is_sent(
    hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch, token: str, said: str, exists: bool
) -> None:
    if exists:
        hub.add_model(REPO, {"README.md": b"mine"}, private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessError, match=said) as caught:
        push(str(out), REPO)
    assert token not in str(caught.value)
    assert hub.count("upload") == hub.count("commit") == 0


def test_a_namespace_of_others_is_refused(hub: HubServer, out: Path) -> None:
    with pytest.raises(AccessError, match=r"others/merged: this token may not write to it \(403 You don't have"):
        push(str(out), "others/merged")
    assert hub.count("upload") == 0


def test_offline_is_said(hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set; unset it to push"):
        push(str(out), REPO)
    assert hub.requests == []


def test_a_card_that_the_hub_refuses_stops_the_push_at_once(hub: HubServer, out: Path) -> None:
    hub.card_error = '"license" must be one of [apache-2.0, ...]'
    with pytest.raises(StorageError, match=r'README\.md: the hub refuses its metadata: "license" must be one of'):
        push(str(out), REPO)
    assert hub.count("create") == hub.count("upload") == 0


def test_an_output_without_a_card_is_pushed_without_one(hub: HubServer, out: Path) -> None:
    (out / "README.md").unlink()
    push(str(out), REPO)
    assert "README.md" not in published(hub)
    assert hub.count("validate") == 0


def set_state(out: Path, state: str) -> None:
    manifest = json.loads((out / "raymerge.json").read_text())
    (out / "raymerge.json").write_text(json.dumps({**manifest, "state": state}))


def first_shard(out: Path) -> Path:
    return min(out.glob("*.safetensors"))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unfinished": (lambda out: set_state(out, "running"), "the merge is unfinished; run the merge command again"),
    "no manifest": (lambda out: (out / "raymerge.json").unlink(), "is no output of a merge"),
    "no manifest at all": (shutil.rmtree, "is no output of a merge"),
    "missing": (lambda out: first_shard(out).unlink(), "model-00001-of-.* is missing or has another size"),
    "shorter": (lambda out: first_shard(out).write_bytes(b"x"), "is missing or has another size"),
    "foreign": (lambda out: (out / "model.safetensors").write_bytes(b""), "model.safetensors: is not of this merge"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_output_that_is_not_whole_is_refused_before_the_hub_is_asked(hub: HubServer, out: Path, damage: str) -> None:
    change, said = DAMAGES[damage]
    change(out)
    with pytest.raises(VerifyError, match=said):
        push(str(out), REPO)
    assert hub.requests == []


def test_a_shard_that_rotted_is_refused_and_nothing_shows(hub: HubServer, out: Path) -> None:
    path = max(out.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerifyError, match=f"{path.name}: has checksum .*, the manifest says"):
        push(str(out), REPO)
    assert published(hub) == {}


def test_another_merge_is_replaced_only_when_asked_and_in_one_commit(hub: HubServer, models: Path, out: Path) -> None:
    other = out.parent / "other"
    raymerge.merge(two_tune_recipe(models, weights=(0.5, 0.5)), other, executor="inline")
    push(str(other), REPO)
    with pytest.raises(PlanError, match=r"user/merged: holds another merge \(plan .*or --overwrite"):
        push(str(out), REPO)
    push(str(out), REPO, overwrite=True)
    assert published(hub) == contents(out)
    assert "model.safetensors" not in published(hub)
    assert commits(hub) == 2


def test_weights_of_something_else_are_not_mixed_in(hub: HubServer, out: Path) -> None:
    hub.add_model(REPO, {"pytorch_model.bin": b"x", "notes.md": b"mine", "onnx/model.bin": b"y"}, private=True)
    with pytest.raises(PlanError, match=r"holds other weights \(pytorch_model\.bin\)"):
        push(str(out), REPO)
    push(str(out), REPO, overwrite=True)
    assert published(hub) == {**contents(out), "notes.md": b"mine", "onnx/model.bin": b"y"}


def test_a_commit_of_someone_else_in_between_is_not_overwritten(hub: HubServer, out: Path) -> None:
    def interfere(_: Event) -> None:
        hub.add_model(REPO, {"README.md": b"somebody was here"}, private=True)

    with pytest.raises(ChangedError, match=r"another commit was made there.*; run the same command again"):
        push(str(out), REPO, on_event=interfere)
    assert published(hub) == {"README.md": b"somebody was here"}
    push(str(out), REPO)
    assert hub.count("upload") == large_files(out)


def test_the_folders_of_a_sentence_model_come_along(hub: HubServer, out: Path) -> None:
    (out / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}]))
    (out / "1_Pooling").mkdir()
    (out / "1_Pooling" / "config.json").write_text("{}")
    push(str(out), REPO)
    assert published(hub) == contents(out)


def test_shards_in_a_store_pass_through_the_disk_one_at_a_time(
    hub: HubServer, out: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.folder()
    for name, data in contents(out).items():
        store_for(url).put(f"{url}/{name}", data)
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    most: list[int] = []
    plain = push_module._checked_sha256

    def watched(path: Path, *rest: Any) -> bytes:
        most.append(len([each for each in spool.rglob("*") if each.is_file()]))
        return plain(path, *rest)

    monkeypatch.setattr(push_module, "_checked_sha256", watched)
    push(url, REPO)
    assert published(hub) == contents(out)
    assert most == [1] * len(list(out.glob("*.safetensors")))
    assert list(spool.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(StorageError, match=r"has 0 B free, a shard of .* passes through it; set TMPDIR"):
        push(url, "user/again")


@pytest.mark.parametrize("repo", ["merged", "a/b/c", "../x/y", "hf://", "s3://bucket/x", "user/", "user/na me", ""])
def test_what_is_no_model_on_the_hub_is_a_mistake_of_usage(hub: HubServer, out: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="is no model on the hub; write it as user/name"):
        push(str(out), repo)


def run(*arguments: str, input: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), input=input, env={"COLUMNS": "300"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert TOKEN not in result.output
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


def test_the_command_says_what_it_published(hub: HubServer, out: Path) -> None:
    code, text = run("push", str(out), REPO)
    assert code == 0
    assert f"pushed {hub.endpoint}/{REPO}" in text
    assert "private, commit" in text
    assert "model-00001-of-" in text
    code, text = run("push", str(out), REPO, "--json", "--quiet")
    assert json.loads(text.splitlines()[-1][text.rindex('{"event": "pushed"') :])["kept_count"] > 2
    code, text = run("push", str(out), REPO, "--public")
    assert code == 2
    assert "exists and is private" in text


def test_the_command_without_a_token_says_what_to_do(
    hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, text = run("push", str(out), REPO)
    assert code == 1
    assert "hf auth login" in text
    assert "HF_TOKEN" in text


def test_a_merge_into_a_commit_of_the_hub_points_to_the_model(hub: HubServer, models: Path) -> None:
    code, text = run(
        "merge", "-", f"hf://{REPO}@main", "--executor", "inline", input=json.dumps(two_tune_recipe(models)) + "\n"
    )
    assert code == 2
    assert f"write hf://{REPO}" in text
    assert hub.requests == []
