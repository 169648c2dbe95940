"""Ranged HTTP requests that never carry a token to a host it was not meant for."""

from __future__ import annotations

import os
import ssl
import threading
import urllib.parse
import urllib.request
from typing import Any

from raymerge.errors import Problem, StorageError
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import Again, StoppedError
from raymerge.storage.traffic import count
from raymerge.storage.urls import redact

CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 30.0  # of silence, not of the whole answer
CONNECTIONS_PER_HOST = 64
SLICE_BYTES = 256 << 10  # held per connection beside the caller's buffer
_MOST_REDIRECTS = 5


class _Pools:
    """One pool of connections per proxy; urllib3 keeps one per host inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[str, Any] = {}

    def get(self, url: str) -> Any:
        import urllib3

        proxy = _proxy(url)
        with self._lock:
            if proxy not in self._pools:
                options: dict[str, Any] = {"maxsize": CONNECTIONS_PER_HOST, "ssl_context": _certificates()}
                self._pools[proxy] = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
            return self._pools[proxy]


_pools = PerProcess(_Pools)


def send(method: str, url: str, headers: dict[str, str]) -> Any:
    """One request without redirects; the answer's body is not read yet. Raises Again for what another try may cure."""
    import urllib3

    try:
        return (
            _pools.get()
            .get(url)
            .request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
            )
        )
    except urllib3.exceptions.LocationValueError as error:
        raise StorageError(Problem(subject=redact(url), message="is not a valid address")) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Again(f"{type(error).__name__}: {redact(str(error))}") from error


def send_within_host(method: str, url: str, headers: dict[str, str]) -> tuple[Any, str]:
    """The answer and the address that gave it; follows redirects on the same host, where `headers` may go as well.

    A redirect to elsewhere is returned as it is.
    """
    for _ in range(_MOST_REDIRECTS):
        answer = send(method, url, headers)
        target = redirect_target(answer, url)
        if target is None or _host(target) != _host(url):
            return answer, url
        answer.drain_conn()
        url = target
    raise StorageError(Problem(subject=redact(url), message="redirects in a circle"))


def redirect_target(answer: Any, url: str) -> str | None:
    location = answer.headers.get("Location")
    return urllib.parse.urljoin(url, location) if location and 300 <= answer.status < 400 else None


def fill(answer: Any, view: memoryview, stop: threading.Event, url: str) -> None:
    """Read exactly `len(view)` bytes of an answer; its connection is dropped if that fails."""
    import urllib3

    done = 0
    try:
        while done < len(view):
            if stop.is_set():
                raise StoppedError(Problem(subject=redact(url), message="given up, since another part of it failed"))
            got = answer.readinto(view[done : done + SLICE_BYTES])
            if not got:
                raise Again(f"the answer ended after {done} of {len(view)} bytes")
            done += got
    except (urllib3.exceptions.HTTPError, OSError) as error:
        answer.close()
        raise Again(f"{type(error).__name__} after {done} of {len(view)} bytes") from error
    except BaseException:
        answer.close()
        raise
    count(read_bytes=done)


def retry_after_seconds(headers: Any) -> float:
    """What a throttling answer asks for: `Retry-After`, or the hub's `RateLimit: "api";r=0;t=55`."""
    text = headers.get("Retry-After", "")
    if not text:
        fields = dict(part.strip().partition("=")[::2] for part in headers.get("RateLimit", "").split(";"))
        text = fields.get("t", "")
    return float(text) if text.strip().isdigit() else 0.0


def _host(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _proxy(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return ""
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all") or ""


def _certificates() -> ssl.SSLContext:
    """The bundle that requests and curl users name; else certifi's where it is installed, since images lack others."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if os.environ.get(name):
            return ssl.create_default_context(cafile=os.environ[name])
    try:
        import certifi
    except ImportError:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=certifi.where())
