"""Ray's job server, by the client that comes with Ray. The only module here that imports ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, TypeVar

from raymerge.errors import AccessError, ExecutionError, Problem, UsageError
from raymerge.submit.follow import JobState, Status, UnreachableError
from raymerge.submit.request import JobRequest, shell_entrypoint

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# The client would let these win over the address that it is given.
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_REQUEST_SECONDS = 30.0
# A stream that has been silent for so long is left to ask how the job is: a connection may die without a word.
_SILENCE_SECONDS = 10.0
_CLOSING_SECONDS = 2.0  # a server that does not answer a goodbye is left without one
_LOG_INTRODUCTION = ", last available logs"  # after it the server repeats the log, which has been shown
_STATUS_CODE = re.compile(r"status code (\d{3})")


def job_request(request: JobRequest) -> dict[str, Any]:
    """What is sent to the job server."""
    environment = {"env_vars": dict(request.environment)} if request.environment else {}
    return {
        "entrypoint": shell_entrypoint(request),
        "submission_id": request.job_id,
        "runtime_env": environment,
        "metadata": {"job_name": request.job_id, "out": request.arguments[0]},
    }


def check_address(address: str) -> str:
    """Raises UsageError for what is no address of a job server."""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", address):
        raise UsageError(
            Problem(
                subject=f"--address {address}",
                message="not the address of a cluster's dashboard",
                remedy="give http://HEAD:8265 (`ray dashboard CLUSTER.yaml` forwards it to http://127.0.0.1:8265)",
            )
        )
    return address.rstrip("/")


class RayJobs:
    """The jobs of the cluster whose dashboard answers at `address`."""

    def __init__(self, address: str) -> None:
        """Raises UsageError, AccessError, or ExecutionError where nothing answers."""
        self._address = check_address(address)
        try:
            self._client = _client(self._address)
        except UnreachableError as error:
            raise self._no_answer(str(error)) from error

    def submit(self, request: JobRequest) -> None:
        """Start the job, under the identity that the request already has."""
        body = job_request(request)
        try:
            _call(lambda: self._client.submit_job(**body))
        except UnreachableError as error:
            raise self._no_answer(str(error)) from error

    def state(self, job_id: str) -> JobState:
        details = _call(lambda: self._client.get_job_info(job_id))
        return JobState(
            status=Status[details.status.value],
            message=(details.message or "").partition(_LOG_INTRODUCTION)[0],
            exit_code=details.driver_exit_code,
        )

    def log(self, job_id: str) -> Generator[str, None, None]:
        with _loop_of_its_own() as loop:
            chunks = self._client.tail_job_logs(job_id)
            while True:
                step = asyncio.run_coroutine_threadsafe(_next(chunks), loop)
                while not wait([step], timeout=_SILENCE_SECONDS).done:
                    yield ""
                text = _call(step.result)
                if text is None:
                    return
                yield text

    def _no_answer(self, reason: str) -> ExecutionError:
        return ExecutionError(
            Problem(
                subject=f"--address {self._address}",
                message=f"no Ray dashboard answers there ({reason})",
                remedy="is the port forwarded (`ray dashboard CLUSTER.yaml`), and does the head have ray[default]?",
            )
        )


async def _next(chunks: AsyncIterator[str]) -> str | None:
    async for chunk in chunks:
        return chunk
    return None


@contextlib.contextmanager
def _loop_of_its_own() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in another thread: Ctrl-C, which is raised in the main one, cannot stop it between two states."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run, args=(loop,), name="job log", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=_CLOSING_SECONDS)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run until stopped, then close what is open. An error of closing says nothing about the job: it is dropped."""
    loop.run_forever()
    loop.set_exception_handler(lambda *_: None)
    for step in asyncio.all_tasks(loop):
        step.cancel()
        with contextlib.suppress(Exception, asyncio.CancelledError):
            loop.run_until_complete(step)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _client(address: str) -> Any:
    """A client whose requests end in time. Raises UsageError naming the extra where a part of it is missing."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise _missing_error(error) from error

    class TimedClient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": _REQUEST_SECONDS, **kwargs})

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)
    hidden = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        return _call(lambda: TimedClient(address))
    finally:
        os.environ.update(hidden)


def _missing_error(error: Exception) -> UsageError:
    return UsageError(
        Problem(
            subject="raymerge submit",
            message=f"Ray's job client is not complete here ({error})",
            remedy="pip install 'raymerge[dashboard]'",
        )
    )


def _call(function: Callable[[], T]) -> T:
    """Call the client, and say which of its errors are worth another try."""
    import aiohttp
    from ray.exceptions import AuthenticationError

    try:
        return function()
    except AuthenticationError as error:
        raise AccessError(
            Problem(
                subject="the cluster",
                message="does not accept this machine's token, or asks for one",
                remedy="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
            )
        ) from error
    except (OSError, aiohttp.ClientError) as error:  # those of requests are OSErrors
        raise UnreachableError(_short(error)) from error
    except RuntimeError as error:
        raise _translated(error) from error


def _translated(error: RuntimeError) -> Exception:
    """The client's RuntimeErrors: a part of it is missing, the server refused, or the stream broke."""
    text = str(error)
    if "ray[default]" in text:
        return _missing_error(error)
    found = _STATUS_CODE.search(text)
    if found is None or found.group(1).startswith("5") or found.group(1) in ("408", "429"):
        return UnreachableError(_short(error))
    remedy = "is this the cluster that runs it? A new cluster knows no old jobs: submit the merge again, it continues"
    return ExecutionError(
        Problem(subject="the cluster", message=f"refused: {_short(error)}", remedy=remedy if "404" in text else "")
    )


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:197]}..."
