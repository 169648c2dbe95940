"""The part of the hub's protocol that pushing needs: make a repository, send large files ahead, commit.

Large files go to signed addresses of another host, as the hub's do. Requests have the kinds "create", "validate",
"preupload", "batch", "upload" and "commit".
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub_server import HubServer

WRITE_KINDS = ("create", "validate", "preupload", "batch", "upload", "commit")
LARGE = (".safetensors", ".bin", ".model", "tokenizer.json")


def write_kind(method: str, path: str) -> str | None:
    """The kind of a request that writes; None for one that reads."""
    if method == "PUT":
        return "upload"
    if method != "POST":
        return None
    if path.endswith(".git/info/lfs/objects/batch"):
        return "batch"
    known = {"/api/repos/create": "create", "/api/validate-yaml": "validate"}
    return known.get(path) or path.removeprefix("/api/models/").split("/")[2]


Answer = tuple[int, dict[str, Any], dict[str, str]]  # status, JSON, headers


def refusal(status: int, message: str = "", code: str = "") -> Answer:
    headers = {"X-Error-Message": message, "X-Error-Code": code}
    return status, {"error": message}, {name: value for name, value in headers.items() if value}


def answer_write(hub: HubServer, kind: str, path: str, token: str | None, body: bytes) -> Answer:
    """Carry out a request that writes."""
    if kind == "upload":
        return _upload(hub, path, body)
    if kind == "validate":
        errors = [{"message": hub.card_error}] if hub.card_error else []
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}
    if token not in (hub.writers | hub.readers):
        return refusal(401, "Invalid credentials in Authorization header")
    if token not in hub.writers:
        return refusal(403, "Forbidden: this token has no write access")
    document = _lines(body)
    if kind == "create":
        return _create(hub, document[0])
    id = path.removeprefix("/api/models/").removesuffix(".git/info/lfs/objects/batch").strip("/")
    id = "/".join(id.split("/")[:2])
    if id not in hub.models:
        return refusal(404, "Repository not found", "RepoNotFound")
    return {"preupload": _preupload, "batch": _batch, "commit": _commit}[kind](hub, id, document)


def _lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines() if line.strip()]


def _create(hub: HubServer, wanted: dict[str, Any]) -> Answer:
    id = f"{wanted['organization']}/{wanted['name']}"
    if wanted["organization"] not in hub.namespaces:
        return refusal(403, f"You don't have the rights to create a model under the namespace {id}")
    if id in hub.models:
        status, document, headers = refusal(409, "You already created this model repo")
        return status, {**document, "url": f"{hub.endpoint}/{id}"}, headers
    is_private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
    hub.add_model(id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=is_private)
    return 200, {"url": f"{hub.endpoint}/{id}", "name": id}, {}


def _preupload(hub: HubServer, id: str, document: list[dict[str, Any]]) -> Answer:
    present = hub.head(id)
    files = []
    for each in document[0]["files"]:
        path = each["path"]
        mode = "lfs" if path.endswith(LARGE) else "regular"
        oid = hub.content_hash(path, present[path]) if path in present else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": files}, {}


def _batch(hub: HubServer, id: str, document: list[dict[str, Any]]) -> Answer:
    objects = []
    for each in document[0]["objects"]:
        entry: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
        if each["oid"] not in hub.large_files:
            entry["actions"] = {"upload": {"href": hub.upload_url(each["oid"])}}
        objects.append(entry)
    return 200, {"transfer": "basic", "objects": objects}, {}


def _upload(hub: HubServer, path: str, body: bytes) -> Answer:
    oid = path.rpartition("/")[2]
    if hashlib.sha256(body).hexdigest() != oid:
        return refusal(400, "the content does not match its hash")
    hub.large_files[oid] = body
    return 200, {}, {}


def _commit(hub: HubServer, id: str, document: list[dict[str, Any]]) -> Answer:
    header = document[0]["value"]
    model = hub.models[id]
    if header.get("parentCommit") not in (None, model.refs["main"]):
        return refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(hub.head(id))
    for each in document[1:]:
        kind, value = each["key"], each["value"]
        if kind == "deletedFile":
            files.pop(value["path"])
        elif kind == "lfsFile":
            if value["oid"] not in hub.large_files:
                return refusal(400, f"LFS object {value['oid']} was not uploaded")
            files[value["path"]] = hub.large_files[value["oid"]]
        else:
            files[value["path"]] = base64.b64decode(value["content"])
    commit = hub.add_model(id, files, private=model.private, gated=model.gated)
    return 200, {"commitUrl": f"{hub.endpoint}/{id}/commit/{commit}", "commitOid": commit, "success": True}, {}
