"""A small server that speaks the part of the Hugging Face hub's protocol that reading and pushing models needs.

    with start_hub(tmp_path) as hub:
        commit = hub.add_model("org/name", {"config.json": b"{}", "model.safetensors": data})
        ...  # hub.env is what a process needs to reach it; hub.requests what was asked

Weights lie behind signed addresses on another host (127.0.0.2) that expire; the rest comes from the hub itself.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_writes import LARGE, answer_write, write_kind

if TYPE_CHECKING:
    from typing_extensions import Self

TOKEN = "hf_testtokentesttoken"
READ_TOKEN = "hf_readtokenreadtoken"


def content_hash(name: str, data: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Model:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    host: str
    token: str | None
    kind: str  # "api", "resolve", "content", or one of hub_writes.WRITE_KINDS
    status: int
    nbytes: int


class HubServer:
    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.models: dict[str, Model] = {}
        self.requests: list[Request] = []
        self.lifetime_seconds = 3600.0
        self.granted = {TOKEN, READ_TOKEN}
        self.writers, self.readers = {TOKEN}, {READ_TOKEN}
        self.namespaces = {"user"}
        self.large_files: dict[str, bytes] = {}  # by SHA-256, committed or not
        self.card_error = ""
        self._generation = 0
        self._faults: dict[str, collections.deque[tuple[int, dict[str, str]]]] = collections.defaultdict(
            collections.deque
        )
        self.lock = threading.Lock()
        self.write_lock = threading.Lock()
        self._servers = [self._serve("127.0.0.1"), self._serve("127.0.0.2")]
        self.endpoint = self._url(0)

    def _serve(self, host: str) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def _url(self, index: int) -> str:
        host, port = self._servers[index].server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def env(self) -> dict[str, str]:
        home = self.root / "hf-home"
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "RAYMERGE_SPOOL": str(self.root / "spool"),
        }

    @property
    def cache(self) -> Path:
        return self.root / "hf-home" / "hub"

    def add_model(
        self,
        id: str,
        files: Mapping[str, bytes | Path],
        revision: str = "main",
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Add a commit with exactly `files` and move `revision` to it. Returns the commit."""
        data = {name: each if isinstance(each, bytes) else Path(each).read_bytes() for name, each in files.items()}
        model = self.models.setdefault(id, Model())
        model.private, model.gated = private, gated
        text = json.dumps([id, len(model.commits), {name: content_hash(name, each) for name, each in data.items()}])
        commit = hashlib.sha1(text.encode()).hexdigest()
        model.commits[commit] = data
        model.refs[revision] = commit
        return commit

    def add_folder(self, id: str, folder: Path, revision: str = "main", **options: bool) -> str:
        files = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.is_file()}
        return self.add_model(id, files, revision, **options)

    def fill_cache(self, id: str, revision: str = "main", names: tuple[str, ...] | None = None) -> Path:
        """What a download would leave in the local cache; returns the snapshot's folder."""
        model = self.models[id]
        commit = model.refs.get(revision, revision)
        repo = self.cache / ("models--" + id.replace("/", "--"))
        snapshot = repo / "snapshots" / commit
        (repo / "blobs").mkdir(parents=True, exist_ok=True)
        for name, data in model.commits[commit].items():
            if names is not None and name not in names:
                continue
            blob = repo / "blobs" / content_hash(name, data)
            blob.write_bytes(data)
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(blob, link.parent))
        if revision != commit:
            ref = repo / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
        return snapshot

    def expire_addresses(self) -> None:
        """Every address given out so far answers 403 from now on."""
        self._generation += 1

    def fail(self, kind: str, status: int, *, times: int = 1, headers: Mapping[str, str] | None = None) -> None:
        """Answer the next requests of a kind ("api", "commit") with a status. 0 carries it out, and cuts the answer."""
        for _ in range(times):
            self._faults[kind].append((status, dict(headers or {})))

    def next_fault(self, kind: str) -> tuple[int, dict[str, str]] | None:
        with self.lock:
            return self._faults[kind].popleft() if self._faults[kind] else None

    def count(self, kind: str) -> int:
        return sum(request.kind == kind for request in self.requests)

    @property
    def weight_bytes(self) -> int:
        return sum(request.nbytes for request in self.requests if request.kind == "content")

    def content_hash(self, name: str, data: bytes) -> str:
        return content_hash(name, data)

    def head(self, id: str) -> dict[str, bytes]:
        """The files of the main branch."""
        model = self.models[id]
        return model.commits[model.refs["main"]]

    def upload_url(self, oid: str) -> str:
        return f"{self._url(1)}/upload/{oid}?Signature=secret"

    def sign(self, id: str, commit: str, name: str) -> str:
        expires = time.time() + self.lifetime_seconds
        query = urllib.parse.urlencode({"Expires": f"{expires:.2f}", "Signature": f"secret-{self._generation}"})
        return f"{self._url(1)}/content/{id}/{commit}/{urllib.parse.quote(name)}?{query}"

    def signature_holds(self, query: Mapping[str, list[str]]) -> bool:
        signed = query.get("Signature", [""])[0] == f"secret-{self._generation}"
        return signed and float(query.get("Expires", ["0"])[0]) > time.time()

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _write(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        kind = write_kind(self.command, path)
        assert kind is not None
        body = self._body()
        fault = self.hub.next_fault(kind)
        if fault is not None and fault[0]:
            self._answer(kind, fault[0], b"", fault[1])
            return
        with self.hub.write_lock:
            status, document, headers = answer_write(self.hub, kind, path, self._token(), body)
        headers = {"Content-Type": "application/json", **headers}
        self._answer(kind, status, json.dumps(document).encode(), headers, cut=fault is not None)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _route(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        kind = "api" if path.startswith("/api/") else "content" if path.startswith("/content/") else "resolve"
        fault = self.hub.next_fault(kind)
        if fault is not None and fault[0]:
            self._answer(kind, fault[0], b"", fault[1])
        elif kind == "api":
            self._api(path, cut=fault is not None)
        elif kind == "content":
            self._content(path, urllib.parse.parse_qs(parts.query), cut=fault is not None)
        else:
            self._resolve(parts.path)

    def _token(self) -> str | None:
        text = self.headers.get("Authorization")
        return text.removeprefix("Bearer ") if text else None

    def _model(self, kind: str, id: str) -> Model | None:
        """The model, or None after an answer that refuses it as the hub does."""
        token = self._token()
        if token is not None and token not in self.hub.granted | self.hub.writers | self.hub.readers:
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._answer(kind, 401, b"", message)
            return None
        model = self.hub.models.get(id)
        if model is None or (model.private and token not in self.hub.granted):
            self._answer(kind, 401 if token is None else 404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if model.gated and kind == "resolve" and token not in self.hub.granted:
            self._answer(kind, 401 if token is None else 403, b"", {"X-Error-Code": "GatedRepo"})
            return None
        return model

    def _commit(self, kind: str, model: Model, revision: str) -> str | None:
        commit = model.refs.get(revision, revision)
        if commit in model.commits:
            return commit
        self._answer(kind, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def _api(self, path: str, *, cut: bool) -> None:
        id, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        model = self._model("api", id)
        commit = self._commit("api", model, revision or "main") if model else None
        if model is None or commit is None:
            return
        siblings = []
        for name, data in model.commits[commit].items():
            digest = content_hash(name, data)
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": digest[:40]}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        document = {
            "_id": "0", "id": id, "modelId": id, "sha": commit, "private": model.private,
            "gated": "manual" if model.gated else False, "siblings": siblings, "tags": [],
        }  # fmt: skip
        self._answer("api", 200, json.dumps(document).encode(), {"Content-Type": "application/json"}, cut=cut)

    def _resolve(self, path: str) -> None:
        id, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        revision, name = urllib.parse.unquote(revision), urllib.parse.unquote(name)
        model = self._model("resolve", id)
        commit = self._commit("resolve", model, revision) if model else None
        if model is None or commit is None:
            return
        if name not in model.commits[commit]:
            self._answer("resolve", 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        data = model.commits[commit][name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{content_hash(name, data)}"', "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers |= {
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{content_hash(name, data)}"',
                "Location": self.hub.sign(id, commit, name),
            }
            self._answer("resolve", 302, b"", headers)
        else:
            self._send_range("resolve", data, headers)

    def _content(self, path: str, query: Mapping[str, list[str]], *, cut: bool) -> None:
        if not self.hub.signature_holds(query):
            self._answer("content", 403, b"", {})
            return
        org, name, commit, file = path.removeprefix("/content/").split("/", 3)
        self._send_range("content", self.hub.models[f"{org}/{name}"].commits[commit][file], {}, cut=cut)

    def _send_range(self, kind: str, data: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        text = self.headers.get("Range")
        if text is None:
            self._answer(kind, 200, data, headers, cut=cut)
            return
        first, _, last = text.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)), len(data) - 1) + 1
        if start >= len(data):
            self._answer(kind, 416, b"", headers)
            return
        headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        self._answer(kind, 206, data[start:end], headers, cut=cut)

    def _answer(self, kind: str, status: int, body: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        sent = b"" if self.command == "HEAD" else body[: len(body) // 2] if cut else body
        with self.hub.lock:
            request = Request(
                method=self.command, path=self.path.partition("?")[0], host=self.server.server_address[0],
                token=self._token(), kind=kind, status=status, nbytes=len(sent),
            )  # fmt: skip
            self.hub.requests.append(request)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(sent)
        if cut:
            self.close_connection = True


def start_hub(root: Path) -> HubServer:
    return HubServer(root)


@contextlib.contextmanager
def hub_env(hub: HubServer, **changes: str) -> Iterator[None]:
    """This process reaches `hub` while entered, and no other hub, token or cache."""
    values = {**hub.env, **changes}
    names = [*values, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"]
    old = {name: os.environ.get(name) for name in names}
    for name in names:
        os.environ.pop(name, None)
    os.environ.update({"HF_TOKEN_PATH": str(hub.root / "no-token"), **values})
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
