"""A small server that speaks Ray's Jobs REST interface, with a job whose log and fate the test writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Job:
    """`cuts` are the characters after which the first log streams end; with `breaks` the connection is reset there."""

    status: str = "RUNNING"
    message: str = ""
    exit_code: int | None = None
    log: str = ""
    cuts: list[int] = field(default_factory=list)
    breaks: bool = False
    ends_after_cuts: str = ""


@dataclass
class JobsServer:
    """`down` makes every answer a 503; `unauthorized` a 401. Requests and submitted bodies are kept."""

    job: Job = field(default_factory=Job)
    down: int = 0
    submitted: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @web.middleware
    async def _count(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if self.down > 0:
            self.down -= 1
            return web.Response(status=503, text="starting")
        return await handler(request)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.submitted.append(body)
        return web.json_response({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

    async def _info(self, request: web.Request) -> web.Response:
        name = request.match_info["job"]
        if self.submitted and name not in {body["submission_id"] for body in self.submitted}:
            return web.Response(status=404, text=f"Job {name} does not exist")
        return web.json_response(
            {
                "type": "SUBMISSION", "submission_id": name, "entrypoint": "", "status": self.job.status,
                "message": self.job.message, "driver_exit_code": self.job.exit_code,
            }
        )  # fmt: skip

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.job.cuts:
            await socket.send_str(self.job.log[: self.job.cuts.pop(0)])
            if self.job.breaks and request.transport is not None:
                request.transport.abort()
            if not self.job.cuts and self.job.ends_after_cuts:
                self.job.status = self.job.ends_after_cuts
            await socket.close()
            return socket
        sent = 0
        while not socket.closed:
            fresh, status = self.job.log[sent:], self.job.status
            for start in range(0, len(fresh), 1000):
                await socket.send_str(fresh[start : start + 1000])
            sent += len(fresh)
            if status in ("SUCCEEDED", "FAILED", "STOPPED") and not fresh:
                break
            await asyncio.sleep(0.02)
        await socket.close()
        return socket


@contextmanager
def start_jobs_server() -> Iterator[JobsServer]:
    server = JobsServer()
    loop = asyncio.new_event_loop()
    application = web.Application(middlewares=[server._count])
    application.add_routes(
        [
            web.get("/api/version", server._version),
            web.post("/api/jobs/", server._submit),
            web.get("/api/jobs/{job}", server._info),
            web.get("/api/jobs/{job}/logs/tail", server._tail),
        ]
    )
    runner = web.AppRunner(application, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
