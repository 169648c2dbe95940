"""Two drivers that write to one output at once: of one plan they do no harm, of another the second is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from merges import start_code, two_tune_recipe
from s3_server import S3Server

import raymerge
from raymerge import pipeline
from raymerge.errors import PlanError
from raymerge.storage import store_for

OPTIONS: dict[str, Any] = {"executor": "inline", "out_shard_size": "7MB", "task_cpus": 1}
# Shards of two parts, and a rest in each: the first to end finds the other in the middle of its uploads.
SLOW = """
import json, os, sys, time, raymerge
from raymerge.merging import shard
from raymerge.storage import s3_parts
s3_parts.part_bytes = lambda nbytes: s3_parts.SMALLEST_PART_BYTES
plain = shard.merge_held
rest = float(os.environ["SECONDS_PER_TENSOR"])
shard.merge_held = lambda *a, **k: (time.sleep(rest), plain(*a, **k))[1]
raymerge.merge(json.loads(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))
"""


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path)
    else:
        server: S3Server = request.getfixturevalue("s3")
        yield server.folder()


def recipe(models: Path, **changes: Any) -> dict[str, Any]:
    return two_tune_recipe(models, "task_arithmetic", **changes)


def digest(out: str) -> dict[str, str]:
    store = store_for(out)
    return {
        info.url.rpartition("/")[2]: hashlib.sha256(store.read(info.url, max_bytes=1 << 26)).hexdigest()
        for info in store.list(out)
    }


def start(config: dict[str, Any], out: str, seconds_per_tensor: float) -> subprocess.Popen[bytes]:
    return start_code(SLOW, config, out, env={"SECONDS_PER_TENSOR": str(seconds_per_tensor)}, **OPTIONS)


@pytest.mark.point(5, "two drivers at once, same plan")
def test_two_drivers_of_one_plan_make_one_valid_model(models: Path, root: str) -> None:
    raymerge.merge(recipe(models), f"{root}/alone", **OPTIONS)
    out = f"{root}/out"
    drivers = [start(recipe(models), out, seconds) for seconds in (0.05, 0.08)]
    assert [driver.wait(120) for driver in drivers] == [0, 0]
    assert digest(out) == digest(f"{root}/alone")
    assert store_for(out).unfinished(out) == ()


@pytest.mark.point(5, "two drivers at once, different plans")
def test_a_driver_of_another_plan_is_refused_and_touches_nothing(models: Path, root: str) -> None:
    raymerge.merge(recipe(models), f"{root}/alone", **OPTIONS)
    out, store = f"{root}/out", store_for(root)
    first = start(recipe(models), out, 0.2)
    deadline = time.monotonic() + 60
    while not any(url.endswith("raymerge.json") for url in urls(out)):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(PlanError, match="holds another merge"):
        raymerge.merge(recipe(models, weights=(0.5, 0.5)), out, **OPTIONS)
    assert first.poll() is None
    assert first.wait(120) == 0
    assert digest(out) == digest(f"{root}/alone")
    assert store.unfinished(out) == ()


def urls(out: str) -> list[str]:
    if "://" not in out and not os.path.isdir(out):
        return []
    return [info.url for info in store_for(out).list(out)]


@pytest.mark.point(5, "another plan begins between look and write")
@pytest.mark.parametrize("same", [True, False])
def test_an_output_that_was_empty_a_moment_ago_is_not_taken_from_another(
    models: Path, root: str, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver begins after this one has looked at the destination and before it writes there."""
    out, plain = f"{root}/out", pipeline.begin
    other = recipe(models) if same else recipe(models, weights=(0.5, 0.5))

    def begin_late(*arguments: Any, **keywords: Any) -> None:
        monkeypatch.setattr(pipeline, "begin", plain)
        raymerge.merge(other, out, **OPTIONS)
        before.update(digest(out))
        plain(*arguments, **keywords)

    before: dict[str, str] = {}
    monkeypatch.setattr(pipeline, "begin", begin_late)
    if same:
        raymerge.merge(recipe(models), out, **OPTIONS)
    else:
        with pytest.raises(PlanError, match="holds another merge"):
            raymerge.merge(recipe(models), out, **OPTIONS)
    assert digest(out) == before
