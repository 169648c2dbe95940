"""A private Ray is quiet and leaves nothing behind; addresses where no cluster answers fail soon and clearly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import task_functions as functions

from raymerge.errors import ExecutionError
from raymerge.execute.ray.session import RaySession

SCRIPT = str(Path(__file__).with_name("private_run.py"))
ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(SCRIPT).parent)])}


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where something listens and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("by_option", [True, False])
def test_a_dead_address_fails_soon_naming_it(monkeypatch: pytest.MonkeyPatch, by_option: bool) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    if not by_option:
        monkeypatch.setenv("RAY_ADDRESS", address)
    session = RaySession(address if by_option else None).start()
    started = time.monotonic()
    with pytest.raises(ExecutionError, match=f"{address}: nothing answers there.*private local Ray"):
        session.wait()
    session.close()
    assert time.monotonic() - started < 15


def test_a_service_that_is_no_ray_head_fails_within_15_seconds(silent_port: int) -> None:
    code = (
        "import sys; from raymerge.errors import ExecutionError; from raymerge.execute.ray.session import RaySession\n"
        f"session = RaySession('127.0.0.1:{silent_port}')\n"
        "try:\n    session.wait()\nexcept ExecutionError as error:\n    print(error); sys.exit(error.exit_code)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert time.monotonic() - started < 15 + 5  # the interpreter and the import of ray are not what is measured
    assert (done.returncode, f"127.0.0.1:{silent_port}: what listens there is not a Ray head" in done.stdout) == (
        1,
        True,
    )


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_run_that_is_interrupted_or_killed_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    path = str(tmp_path / "pids")
    with subprocess.Popen(
        [sys.executable, SCRIPT, "wait", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "started\n"
        while not functions.lines(path):
            time.sleep(0.02)
        started = time.monotonic()
        if how is signal.SIGINT:
            os.killpg(driver.pid, how)  # as a terminal does
        else:
            driver.kill()
        assert driver.wait(timeout=20) != 0
        assert time.monotonic() - started < 8
    worker = int(functions.lines(path)[0])
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_session_that_is_left_before_ray_is_up_does_not_hold_the_process() -> None:
    code = "from raymerge.execute.ray.session import RaySession\nwith RaySession():\n    raise SystemExit(3)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stderr) == (3, "")
    assert time.monotonic() - started < 4
