"""Whatever a store does, and however often: the right bytes, or an error after which the same command ends with them.

A schedule is a seed: which requests fail and how, and in every third when the credentials expire. All 200 run by
`make test-faults`; the first few are part of every run.
"""

from __future__ import annotations

import gc
import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from fault_proxy import FAULTS, FaultProxy, start_proxy
from merges import two_tune_recipe
from s3_server import NEXT_KEY, S3Server, s3_env, write_keys

import raymerge
from raymerge.errors import RaymergeError
from raymerge.execute.inline import run_inline
from raymerge.storage import base_name, retry, s3_client, s3_parts, store_for, transfer
from raymerge.storage.s3 import S3Store
from raymerge.storage.s3_parts import SMALLEST_PART_BYTES

SCHEDULES = 200
ALWAYS = 12
FAULT_RATE = 0.25
TIMEOUT_SECONDS = 0.25
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 320, "heads": 5, "vocab": 512, "intermediate": 1024}
OPTIONS: dict[str, Any] = {"out_shard_size": "6MB", "executor": "inline"}
IMPATIENT = retry.Patience(tries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)


@pytest.fixture(scope="module", autouse=True)
def few_collections() -> Iterator[None]:
    """Collections pass over what the tests' own libraries made: they would take a sixth of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def recipes(s3_process: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Merged tensors, and copies inside the store."""
    folder = tmp_path_factory.mktemp("models")
    with s3_env(s3_process):
        root = s3_process.folder()
        for seed, name in enumerate(["base", "a", "b"]):
            delta_of = folder / "base" if seed else None
            for path in write_llama(folder / name, seed=seed, delta_of=delta_of, **SHAPE).iterdir():
                store_for(root).put(f"{root}/{name}/{path.name}", path.read_bytes())
    slices = [{"sources": [{"model": f"{root}/{name}", "layer_range": [0, 2]}]} for name in "ab"]
    return {"merged": two_tune_recipe(root), "stacked": {"merge_method": "passthrough", "slices": slices}}


@pytest.fixture(scope="module")
def expected(s3_process: S3Server, recipes: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """By recipe, the digests of the files that a store without faults gets, no byte of them copied inside it."""
    with s3_env(s3_process), pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Store, "copies_from", lambda self, url: False)
        outs = {name: s3_process.folder() for name in recipes}
        for name, out in outs.items():
            raymerge.merge(recipes[name], out, **OPTIONS)
        return {name: digest(out) for name, out in outs.items()}


@pytest.fixture(scope="module")
def ends() -> Iterator[Counter[str]]:
    """How the schedules ended; of all of them, some did in each way, or they would show nothing."""
    counter: Counter[str] = Counter()
    yield counter
    print(f"\nfault schedules: {dict(counter)}")  # noqa: T201 (figures)
    if counter.total() >= SCHEDULES:
        assert all(counter[end] >= SCHEDULES // 10 for end in ("merged at once", "failed, then merged"))


@pytest.fixture
def proxy(s3_process: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A server that can be broken, found by keys in a file; parts so small that MB-sized objects have several."""
    monkeypatch.setattr(s3_parts, "PART_BYTES", SMALLEST_PART_BYTES)
    monkeypatch.setattr(s3_parts, "COPY_PART_BYTES", SMALLEST_PART_BYTES)
    monkeypatch.setattr(transfer, "PART_BYTES", 2 << 20)
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_SECONDS", TIMEOUT_SECONDS)
    monkeypatch.setitem(run_inline.__kwdefaults__, "retry_wait_seconds", 0.001)
    keys = tmp_path / "credentials"
    write_keys(keys, s3_process.access_key, s3_process.secret_key)
    with start_proxy(s3_process.endpoint) as proxy, s3_env(s3_process, keys=keys, AWS_ENDPOINT_URL=proxy.endpoint):
        proxy.slow_seconds = 0.02
        yield proxy


def digest(url: str) -> dict[str, str]:
    store = store_for(url)
    return {
        base_name(info.url): hashlib.sha256(store.read(info.url, max_bytes=1 << 30)).hexdigest()
        for info in store.list(url)
    }


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow) if seed >= ALWAYS else seed for seed in range(SCHEDULES)]
)
def test_right_bytes_or_a_clean_failure(
    s3_process: S3Server, proxy: FaultProxy, tmp_path: Path, recipes, expected, ends: Counter[str], seed: int
) -> None:
    name = list(recipes)[seed % 2]
    out = s3_process.folder()
    proxy.break_at_random(seed=seed, rate=FAULT_RATE, faults=FAULTS)
    if seed % 3 == 0:
        after = random.Random(seed).randrange(40)
        proxy.expire(s3_process.access_key, after=after, then=lambda: write_keys(tmp_path / "credentials", *NEXT_KEY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "PATIENCE", IMPATIENT)
        try:
            raymerge.merge(recipes[name], out, **OPTIONS)
            ended = True
        except RaymergeError:
            ended = False
    ends["merged at once" if ended else "failed, then merged"] += 1
    proxy.break_at_random(seed=seed, rate=0.0)
    store = store_for(out)
    if not ended:
        for info in store.list(out):  # a shard is whole or not there
            if "-of-" in info.url:
                content = store.read(info.url, max_bytes=1 << 30)
                assert hashlib.sha256(content).hexdigest() == expected[name][base_name(info.url)]
        raymerge.merge(recipes[name], out, **OPTIONS)
    assert digest(out) == expected[name]
    assert store.unfinished(out) == ()
