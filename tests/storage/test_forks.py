"""Forks that run Python in the child, as Ray's do when it starts, beside requests of huggingface_hub."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from raymerge.errors import StorageError
from raymerge.execute.ray.session import RaySession
from raymerge.storage.hub_push import find_repository
from raymerge.storage.process import SharedLock, forks

# Without the lock one of the first few hundred children waits for ever, and the parent with it.
_FORKS_BESIDE_REQUESTS = """
import http.server, os, subprocess, threading
from raymerge.storage.process import forks

class Empty(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_TOKEN="hf_test")
from raymerge.storage.hub_push import find_repository

asked = threading.Semaphore(0)
def ask():
    while True:
        assert find_repository("user/none") is None
        asked.release()

threading.Thread(target=server.serve_forever, daemon=True).start()
for _ in range(2):
    threading.Thread(target=ask, daemon=True).start()
for _ in range(400):
    asked.acquire()
    with forks.get().alone():
        subprocess.run(["true"], preexec_fn=lambda: None, check=True)
os._exit(0)
"""


def test_no_fork_meets_a_request_of_the_hub() -> None:
    subprocess.run([sys.executable, "-c", _FORKS_BESIDE_REQUESTS], timeout=60, check=True)


def test_a_private_ray_starts_when_no_request_of_the_hub_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()

    def init(**options: object) -> None:
        started.set()
        raise RuntimeError("far enough")

    monkeypatch.setattr("ray.init", init)
    with forks.get().shared():
        session = RaySession().start()
        assert not started.wait(2)
    with pytest.raises(Exception, match="far enough"):
        session.wait()


def test_a_request_of_the_hub_waits_until_the_forks_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    asked = threading.Event()

    def look(repo: str) -> None:
        asked.set()
        raise StorageError

    monkeypatch.setattr("raymerge.storage.hub_push._look", look)

    def ask() -> None:
        with pytest.raises(StorageError):
            find_repository("user/none")

    thread = threading.Thread(target=ask)
    with forks.get().alone():
        thread.start()
        assert not asked.wait(0.5)
    thread.join()
    assert asked.is_set()


def test_who_wants_it_alone_goes_before_those_that_come_later() -> None:
    lock, order = SharedLock(), list[str]()

    def hold(name: str) -> None:
        with lock.alone() if name == "alone" else lock.shared():
            order.append(name)

    threads = [threading.Thread(target=hold, args=(name,)) for name in ("alone", "shared")]
    with lock.shared(), lock.shared():
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["alone", "shared"]
