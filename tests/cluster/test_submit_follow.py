"""Following a job to its end: each character once, the job's own exit code, and detaching."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jobs_server import JobsServer, start_jobs_server

from raymerge.errors import ExecutionError, UsageError
from raymerge.submit.follow import JobState, Status, exit_code, follow
from raymerge.submit.ray_jobs import RayJobs

# Ray's client asks aiohttp for the default certificates in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")

JOB = "raymerge-1"
LOG = "".join(f"line {number}: größer\n" for number in range(300))
RECIPE = "merge_method: passthrough\nmodels:\n  - model: org/a\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsServer]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with start_jobs_server() as server:
        yield server


class Watched:
    """What following showed and noted; `sleep` lets the test act between two looks."""

    def __init__(self, server: JobsServer, on_sleep: Callable[[], object] = lambda: None, **options: Any) -> None:
        self.texts: list[str] = []
        self.notes: list[str] = []
        self.on_sleep = on_sleep
        self.state = follow(
            RayJobs(server.address), JOB, show=self.texts.append, note=self.notes.append, sleep=self.sleep, **options
        )

    def sleep(self, seconds: float) -> None:
        self.on_sleep()

    @property
    def shown(self) -> str:
        return "".join(self.texts)


def finish(server: JobsServer, status: str = "SUCCEEDED") -> None:
    server.job.status = status


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("cuts", [[0], [37, 5000], [900, 40, 3000]])
def test_streams_that_end_while_the_job_runs_are_opened_again(
    server: JobsServer, cuts: list[int], breaks: bool
) -> None:
    server.job.log, server.job.cuts, server.job.breaks = LOG, list(cuts), breaks
    watched = Watched(server, on_sleep=lambda: server.job.cuts or finish(server))
    assert watched.shown == LOG
    assert watched.state.status is Status.SUCCEEDED
    assert sum("tail" in request for request in server.requests) > len(cuts)


def test_what_was_written_between_the_last_stream_and_the_end_is_shown(server: JobsServer) -> None:
    server.job.log, server.job.cuts, server.job.ends_after_cuts = LOG, [10], "FAILED"
    watched = Watched(server)
    assert watched.shown == LOG
    assert watched.state.status is Status.FAILED


def test_a_server_that_is_away_for_a_while_is_waited_for(server: JobsServer) -> None:
    server.job.log, server.job.cuts, server.job.ends_after_cuts = LOG, [10], "SUCCEEDED"

    class Away:
        def __init__(self) -> None:
            self.inner, self.calls = RayJobs(server.address), 0

        def state(self, job_id: str) -> JobState:
            self.calls += 1
            server.down = 3 if self.calls == 2 else 0
            return self.inner.state(job_id)

        def log(self, job_id: str) -> Any:
            return self.inner.log(job_id)

    texts: list[str] = []
    notes: list[str] = []
    state = follow(Away(), JOB, show=texts.append, note=notes.append, sleep=lambda _: None)
    assert ("".join(texts), state.status) == (LOG, Status.SUCCEEDED)
    assert any("503" in note for note in notes)


def test_a_server_that_stays_away_ends_following_with_what_to_do(server: JobsServer) -> None:
    jobs = RayJobs(server.address)
    server.down = 1000
    with pytest.raises(ExecutionError, match="submit the same merge to another"):
        follow(jobs, JOB, show=print, note=lambda _: None, sleep=lambda _: None, patience_seconds=10)


def test_a_job_that_the_cluster_does_not_know_is_no_reason_to_wait(server: JobsServer) -> None:
    server.submitted = [{"submission_id": "another"}]
    with pytest.raises(ExecutionError, match="404"):
        Watched(server)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (Status.SUCCEEDED, None, 0), (Status.FAILED, 2, 2), (Status.FAILED, 1, 1), (Status.FAILED, -9, 137),
        (Status.FAILED, None, 1), (Status.STOPPED, None, 130), (Status.STOPPED, -15, 143),
    ],
)  # fmt: skip
def test_the_exit_code_is_the_jobs_own(status: Status, code: int | None, expected: int) -> None:
    assert exit_code(JobState(status=status, exit_code=code)) == expected


def test_a_ray_address_in_the_environment_does_not_win(server: JobsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert RayJobs(server.address).state(JOB).status is Status.RUNNING
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto", "http://"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="http://HEAD:8265"):
        RayJobs(address)


def test_nothing_listens() -> None:
    with pytest.raises(ExecutionError, match="no Ray dashboard answers"):
        RayJobs("http://127.0.0.1:9")


def submit(server: JobsServer, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    config = folder / "config.yaml"
    config.write_text(RECIPE)
    command = [sys.executable, "-m", "raymerge", "submit", *(arguments or (str(config), "s3://bucket/out"))]
    return subprocess.Popen(
        [*command, "--address", server.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("turns", range(6))
def test_an_interrupt_between_any_two_turns_of_the_loop_stays_an_interrupt(
    server: JobsServer, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    async def chunks() -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()

        def interrupt_after(more: int) -> None:
            if more:
                loop.call_soon(interrupt_after, more - 1)
            else:
                os.kill(os.getpid(), signal.SIGINT)

        try:
            loop.call_soon(interrupt_after, turns)
            yield "first"
            await asyncio.sleep(30)
        finally:
            raise aiohttp.ClientError("closing a connection that is no more")

    jobs = RayJobs(server.address)
    monkeypatch.setattr(jobs._client, "tail_job_logs", lambda _: chunks())
    with pytest.raises(KeyboardInterrupt):
        for _ in jobs.log(JOB):
            pass


def test_ctrl_c_detaches_and_attaching_shows_the_rest(server: JobsServer, tmp_path: Path) -> None:
    server.job.log = LOG
    process = submit(server, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == LOG.splitlines(keepends=True)[0]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    (body,) = server.submitted
    assert process.returncode == 130
    assert f"raymerge submit --attach {body['submission_id']} --address {server.address}" in errors
    assert not any("stop" in request for request in server.requests)

    server.job.status, server.job.exit_code, server.job.message = "FAILED", 2, "Job entrypoint command failed"
    attached = submit(server, tmp_path, "--attach", body["submission_id"])
    output, errors = attached.communicate(timeout=30)
    assert (attached.returncode, output) == (2, LOG)
    assert "entrypoint command failed" in errors
    assert len(server.submitted) == 1
