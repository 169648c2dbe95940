from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server

from raymerge.storage import hub as hub_store
from raymerge.storage import hub_api, retry


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
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow at once, and end after three."""
    patience = retry.Patience(tries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)
    monkeypatch.setattr(retry, "PATIENCE", patience)
    monkeypatch.setattr(hub_api, "HUB_PATIENCE", patience)
    monkeypatch.setattr(hub_store, "HUB_PATIENCE", patience)
