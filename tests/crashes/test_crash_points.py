"""A run that dies at any step of the commit is continued by the same command: the same files, and nothing stray."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_at import CRASHED, LOCAL_ONLY, POINTS, S3_ONLY
from merges import two_tune_recipe
from s3_server import S3Server, s3_env

import raymerge
from raymerge.storage import store_for

SCRIPT = str(Path(__file__).with_name("crash_at.py"))
OPTIONS = {"executor": "inline", "out_shard_size": "7MB", "task_cpus": 1}
# A rerun finds nothing to make where every shard was whole; what is left to do is small.
WHOLE = ("index", "complete manifest", "everything")


@dataclass(frozen=True)
class Crashed:
    """Outputs by crash point, each left by a run that died there, and one of an undisturbed run."""

    root: str
    recipe: dict[str, object]
    outs: dict[str, str]

    def digest(self, out: str) -> dict[str, str]:
        store = store_for(out)
        return {
            info.url.rpartition("/")[2]: hashlib.sha256(store.read(info.url, max_bytes=1 << 26)).hexdigest()
            for info in store.list(out)
        }


def crash(root: str, recipe: dict[str, object], points: list[str], env: dict[str, str]) -> Crashed:
    outs = {point: f"{root}/{point.replace(' ', '-')}" for point in points}
    done = subprocess.run(
        [sys.executable, SCRIPT],
        input=json.dumps([[point, recipe, out, OPTIONS] for point, out in outs.items()]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **env},
    )
    statuses = dict(zip(outs, json.loads(done.stdout), strict=True))
    assert set(statuses.values()) == {CRASHED}, (statuses, done.stderr)
    raymerge.merge(recipe, f"{root}/undisturbed", **OPTIONS)
    return Crashed(root=root, recipe=recipe, outs=outs)


@pytest.fixture(scope="module")
def local(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    points = [point for point in POINTS if point not in S3_ONLY]
    return crash(str(tmp_path_factory.mktemp("local")), two_tune_recipe(models, "task_arithmetic"), points, {})


@pytest.fixture(scope="module")
def remote(models: Path, s3_process: S3Server) -> Iterator[Crashed]:
    points = [point for point in POINTS if point not in LOCAL_ONLY]
    with s3_env(s3_process):
        yield crash(s3_process.folder(), two_tune_recipe(models, "task_arithmetic"), points, s3_process.env)


def continue_from(crashed: Crashed, point: str) -> None:
    out, store = crashed.outs[point], store_for(crashed.root)
    shards = {info.url: info for info in store.list(out) if info.url.endswith(".safetensors")} if is_there(out) else {}
    result = raymerge.merge(crashed.recipe, out, **OPTIONS)
    assert crashed.digest(out) == crashed.digest(f"{crashed.root}/undisturbed")
    assert store.unfinished(out) == ()
    assert result.kept_count == len(shards)
    assert (result.kept_count == result.shard_count) is point.endswith(WHOLE)
    now = {info.url: info for info in store.list(out)}
    assert all(now[url].modified == before.modified for url, before in shards.items())


def is_there(out: str) -> bool:
    return "://" in out or Path(out).exists()


@pytest.mark.point(4, "crash points, local")
@pytest.mark.parametrize("point", [point for point in POINTS if point not in S3_ONLY])
def test_a_local_run_is_continued(local: Crashed, point: str) -> None:
    continue_from(local, point)


@pytest.mark.point(4, "crash points, S3")
@pytest.mark.parametrize("point", [point for point in POINTS if point not in LOCAL_ONLY])
def test_a_run_into_s3_is_continued(remote: Crashed, point: str) -> None:
    continue_from(remote, point)


def test_crashes_leave_what_a_rerun_has_to_remove(models: Path, tmp_path: Path, s3: S3Server) -> None:
    """Otherwise the laws above would hold of runs that clean up nothing."""
    recipe, root = two_tune_recipe(models, "task_arithmetic"), s3.folder()
    local = crash(str(tmp_path), recipe, ["in the middle of a shard"], {}).outs["in the middle of a shard"]
    assert len(store_for(local).unfinished(local)) == 1
    remote = crash(root, recipe, ["between the parts of a shard"], s3.env).outs["between the parts of a shard"]
    assert len(store_for(remote).unfinished(remote)) == 1
