"""Which Ray a run uses: a table, decided without importing ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raymerge.errors import UsageError
from raymerge.execute.ray.address import choose_target

HEAD = "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("address", "environ", "connected", "expected"),
    [
        (None, {}, False, ("private", "", "")),
        ("local", {"RAY_ADDRESS": HEAD}, False, ("private", "", "")),
        (None, {"RAY_ADDRESS": "local"}, False, ("private", "", "")),
        (None, {"RAY_ADDRESS": ""}, False, ("private", "", "")),
        (HEAD, {"RAY_ADDRESS": "10.0.0.2:6379"}, False, ("cluster", HEAD, "--address")),
        (None, {"RAY_ADDRESS": HEAD}, False, ("cluster", HEAD, "RAY_ADDRESS")),
        ("auto", {}, False, ("cluster", "auto", "--address")),
        ("[fd00::1]:6379", {}, False, ("cluster", "[fd00::1]:6379", "--address")),
        (None, {"RAY_ADDRESS": HEAD}, True, ("connected", "", "")),
    ],
)
def test_explicit_then_connected_then_environment_then_private(
    address: str | None, environ: dict[str, str], connected: bool, expected: tuple[str, str, str]
) -> None:
    target = choose_target(address, environ, connected=connected)
    assert (target.kind, target.address, target.origin) == expected


@pytest.mark.parametrize("address", ["http://head:8265", "https://head", "ray://head:10001"])
@pytest.mark.parametrize("by_option", [True, False])
def test_an_off_cluster_address_names_job_submission(address: str, by_option: bool) -> None:
    origin = "--address" if by_option else "RAY_ADDRESS"
    with pytest.raises(UsageError, match=f"{origin} {address}.*ray job submit") as caught:
        choose_target(address if by_option else None, {"RAY_ADDRESS": address}, connected=False)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("address", ["nonsense", "head", "head:port", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        choose_target(address, {}, connected=False)


def test_an_address_is_refused_in_a_process_that_is_connected_already() -> None:
    with pytest.raises(UsageError, match="already connected"):
        choose_target(HEAD, {}, connected=True)


def test_choosing_does_not_import_ray() -> None:
    code = (
        "import sys, raymerge.execute.ray.session as s; s.RaySession('10.0.0.1:6379'); sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
