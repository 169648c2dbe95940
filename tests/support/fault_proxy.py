"""A proxy in front of an HTTP store that counts, slows down and breaks requests.

    with start_proxy(server.endpoint) as proxy, s3_env(server, AWS_ENDPOINT_URL=proxy.endpoint):
        proxy.inject("cut", "reset")              # the next requests fail so, in this order
        proxy.break_at_random(seed=7, rate=0.2)   # then every fifth fails somehow, always the same ones for a seed
        proxy.bytes_per_second = 50e6             # of answers, all connections together
        proxy.capacity = 4                        # 503 for a request that is one more than so many at once
        proxy.expire("KEY", after=20, then=f)     # from the 20th request on, KEY's are refused; then f is called

The faults are what stores and networks are seen to do; `Fault` lists them.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import random
import re
import select
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from typing_extensions import Self

Fault = Literal[
    "slowdown",  # 503 SlowDown, not forwarded
    "busy",  # 429, not forwarded
    "internal",  # 500 InternalError, not forwarded
    "bad_gateway",  # 502 with a page of HTML
    "reset",  # the connection is reset before the request is forwarded
    "lost",  # the request is carried out, its answer lost
    "cut",  # half of the body, then the connection ends
    "short",  # a complete answer with fewer bytes than asked for
    "whole",  # the range is ignored: 200 and as many bytes as the object has (zeros: nobody may use them)
    "elsewhere",  # a 206 of another range, as long as the one asked for
    "slow",  # the answer comes late
    "silent",  # no answer, and the connection stays open
    "stalled",  # half of the body, then nothing more, and the connection stays open
    "error_in_200",  # CompleteMultipartUpload or a copy: 200 with an error as its body, not forwarded
    "damaged",  # one byte of the request's body is changed on the way
]
Refusal = Literal["slowdown", "expired"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# What makes sense for a request; a fault drawn for another kind of request passes it on unharmed.
_ONLY: dict[str, Callable[[BaseHTTPRequestHandler], bool]] = {
    "cut": lambda request: request.command == "GET",
    "stalled": lambda request: request.command == "GET",
    "short": lambda request: request.command == "GET" and "Range" in request.headers,
    "elsewhere": lambda request: request.command == "GET" and "Range" in request.headers,
    "whole": lambda request: request.command == "GET" and "Range" in request.headers,
    "damaged": lambda request: request.command == "PUT" and request.headers.get("Content-Length", "0") != "0",
    "error_in_200": lambda request: (
        (request.command == "POST" and "uploadId=" in request.path) or "x-amz-copy-source" in request.headers
    ),
}
_STATUS = {
    "slowdown": (503, "SlowDown"),
    "busy": (429, "TooManyRequests"),
    "internal": (500, "InternalError"),
    "bad_gateway": (502, ""),
    "error_in_200": (200, "InternalError"),
    "expired": (400, "ExpiredToken"),
}
_BLOCK = 256 << 10
_LONGEST_SILENCE_SECONDS = 60


class FaultProxy:
    def __init__(self, upstream: str, *, host: str = "127.0.0.1") -> None:
        self.upstream = urllib.parse.urlsplit(upstream)
        self.bytes_per_second = 0.0
        self.slow_seconds = 0.3
        self.capacity = 0
        self.running = self.most_running = 0
        self.requests: collections.Counter[str] = collections.Counter()
        self.broken: collections.Counter[str] = collections.Counter()
        self.bytes_down = 0
        self.bytes_up = 0
        self._lock = threading.Lock()
        self._next: collections.deque[Fault | None] = collections.deque()
        self._rate = 0.0
        self._faults: tuple[Fault, ...] = FAULTS
        self._random = random.Random(0)
        self._free_at = 0.0
        self._expiring: tuple[str, int, Callable[[], object]] | None = None
        self._expired: set[str] = set()
        self._server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that reset their connections
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.endpoint = f"http://{host}:{self._server.server_address[1]}"

    def inject(self, *faults: Fault | None) -> None:
        """Break the next requests that each fault applies to; None lets one pass."""
        with self._lock:
            self._next.extend(faults)

    def break_at_random(self, *, seed: int, rate: float, faults: tuple[Fault, ...] = FAULTS) -> None:
        with self._lock:
            self._random, self._rate, self._faults = random.Random(seed), rate, faults

    def expire(self, key: str, *, after: int = 0, then: Callable[[], object] = lambda: None) -> None:
        """Refuse what `key` has signed, from the request with number `after` on; before, `then` is called."""
        with self._lock:
            self._expiring = key, after, then

    def forgive(self, key: str) -> None:
        with self._lock:
            self._expired.discard(key)

    def refused(self, request: BaseHTTPRequestHandler) -> Refusal | None:
        """Why a request is refused whatever the faults are."""
        with self._lock:
            if self._expiring is not None and self.requests.total() >= self._expiring[1]:
                key, _, then = self._expiring
                then()
                self._expired.add(key)
                self._expiring = None
            signed = re.search(r"Credential=([^/]+)/", request.headers.get("Authorization", ""))
            fault: Refusal | None = None
            if signed and signed[1] in self._expired:
                fault = "expired"
            elif self.capacity and self.running > self.capacity:
                fault = "slowdown"
            if fault:
                self.broken[fault] += 1
            return fault

    def reset_counts(self) -> None:
        with self._lock:
            self.most_running = 0
            self.requests.clear()
            self.broken.clear()
            self.bytes_down = self.bytes_up = 0

    def draw(self, request: BaseHTTPRequestHandler) -> Fault | None:
        with self._lock:
            self.requests[request.command] += 1
            fault: Fault | None = None
            if self._next:
                if self._next[0] is None or _ONLY.get(self._next[0], lambda _: True)(request):
                    fault = self._next.popleft()
            elif self._rate:
                drawn = self._random.choice(self._faults)  # always two draws: a seed means one schedule
                if self._random.random() < self._rate and _ONLY.get(drawn, lambda _: True)(request):
                    fault = drawn
            if fault:
                self.broken[fault] += 1
            return fault

    @contextlib.contextmanager
    def in_service(self) -> Iterator[None]:
        """Count a request among those that are answered at the same time."""
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            with self._lock:
                self.running -= 1

    def carry(self, *, down: int = 0, up: int = 0) -> None:
        """Count bytes, and wait as long as they take at `bytes_per_second`."""
        with self._lock:
            self.bytes_down += down
            self.bytes_up += up
            if not self.bytes_per_second:
                return
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + down / self.bytes_per_second
            wait = self._free_at - now
        time.sleep(wait)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_proxy(upstream: str, *, host: str = "127.0.0.1") -> FaultProxy:
    return FaultProxy(upstream, host=host)


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        with self.proxy.in_service():
            fault = self.proxy.draw(self)
            refused = self.proxy.refused(self)
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.proxy.carry(up=len(body))
            with contextlib.suppress(ConnectionError):
                self._answer(refused or fault, body)

    def _answer(self, fault: str | None, body: bytes) -> None:
        if fault in _STATUS:
            self._refuse(*_STATUS[fault])
        elif fault == "reset":
            self._reset()
        elif fault == "silent":
            self._wait_for_the_end()
        else:
            self._forward(fault, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 (http.server's names)

    def _refuse(self, status: int, code: str) -> None:
        page = f"<Error><Code>{code}</Code><Message>injected</Message></Error>" if code else "<html>bad gateway</html>"
        body = b"" if self.command == "HEAD" else page.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml" if code else "text/html")
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _wait_for_the_end(self) -> None:
        """Say nothing until the client has had enough."""
        select.select([self.connection], [], [], _LONGEST_SILENCE_SECONDS)
        self.close_connection = True

    def _forward(self, fault: str | None, body: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        if fault == "damaged":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "slow":
            time.sleep(self.proxy.slow_seconds)
        upstream = http.client.HTTPConnection(self.proxy.upstream.netloc, timeout=60)
        try:
            upstream.request(self.command, self.path, body=body or None, headers=headers)
            answer = upstream.getresponse()
            if fault == "lost":
                answer.read()
                self._reset()
            else:
                self._pass_on(answer, fault)
        finally:
            upstream.close()

    def _pass_on(self, answer: http.client.HTTPResponse, fault: str | None) -> None:
        status, headers = answer.status, answer.headers
        blocks: list[bytes] = []
        if headers.get("Content-Length") is None and self.command != "HEAD":
            blocks = [answer.read()]
            length = len(blocks[0])
        else:
            length = int(headers.get("Content-Length") or "0")
        if fault == "short":
            length //= 2
        elif fault == "whole" and status == 206:
            answer.read()
            status, length = 200, int(headers["Content-Range"].rpartition("/")[2])
            del headers["Content-Range"]
            blocks = [bytes(length)]
        elif fault == "elsewhere" and status == 206:
            headers.replace_header("Content-Range", _shifted(headers["Content-Range"]))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self._pass_body(answer, blocks, length // 2 if fault in ("cut", "stalled") else length)
        if fault == "stalled":
            self._wait_for_the_end()
        if fault == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _pass_body(self, answer: http.client.HTTPResponse, blocks: list[bytes], left: int) -> None:
        while left:
            block = (blocks.pop() if blocks else answer.read(min(_BLOCK, left)))[:left]
            self.proxy.carry(down=len(block))
            self.wfile.write(block)
            left -= len(block)
            if not block:
                break


def _shifted(content_range: str) -> str:
    first, last, total = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range).groups()
    return f"bytes {int(first) + 1}-{int(last) + 1}/{total}"
