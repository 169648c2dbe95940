"""Locations as every store writes them: plain absolute paths, or `scheme://...` without trailing slashes."""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")
_USER = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.\-]*://)[^\s/@]*:[^\s/@]*@")
_QUERY = re.compile(r"(?P<address>\b[A-Za-z][A-Za-z0-9+.\-]*://[^\s?#'\"]+|/[^\s?#'\"]*)\?[^\s'\"<>)]+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?i:\bbearer\s+)[^\s'\"]+")


def scheme_of(url: str) -> str:
    """The scheme in lower case; "" for a local path."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else ""


def is_local(url: str) -> bool:
    return scheme_of(url) in ("", "file", "local")


def normalize_url(text: str, *, cwd: str | None = None) -> str:
    """The one spelling of a location: `~` and relative paths become absolute, `file://` becomes a path."""
    scheme = scheme_of(text)
    if scheme in ("file", "local"):
        text = unquote(urlsplit(text).path) if scheme == "file" else text[len("local://") :]
    elif scheme:
        rest = text[len(scheme) + 3 :].rstrip("/")
        scheme = {"s3a": "s3", "s3n": "s3"}.get(scheme, scheme)  # Hadoop's spellings
        return f"{scheme}://{rest}"
    path = os.path.expanduser(text)  # noqa: PTH111 (pathlib would raise for an unknown user)
    return os.path.normpath(os.path.join(cwd or os.getcwd(), path))  # noqa: PTH109, PTH118


def join_url(folder: str, name: str) -> str:
    """`name` (which may hold slashes) inside `folder`. An absolute name or one that climbs out is a ValueError."""
    if name.startswith("/") or ".." in name.split("/") or scheme_of(name):
        raise ValueError(f"{name!r} is not a name inside a folder")
    return f"{folder.rstrip('/')}/{name}" if folder != "/" else f"/{name}"


def parent_url(url: str) -> str:
    """The folder an object lies in; the root of a scheme is its own parent."""
    scheme = scheme_of(url)
    if not scheme:
        return posixpath.dirname(url.rstrip("/")) or "/"
    head, _, _ = url[len(scheme) + 3 :].rstrip("/").rpartition("/")
    return f"{scheme}://{head}" if head else url


def base_name(url: str) -> str:
    """The last component."""
    scheme = scheme_of(url)
    return url[len(scheme) + 3 if scheme else 0 :].rstrip("/").rpartition("/")[2]


def redact(text: str) -> str:
    """`text` without passwords in URLs, query strings (signed addresses) and bearer tokens; fit for any message."""
    text = _USER.sub(r"\g<scheme>", text)
    text = _QUERY.sub(r"\g<address>", text)
    return _TOKEN.sub("***", text)
