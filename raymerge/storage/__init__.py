"""Bytes in and out: local disks, S3, the Hugging Face hub, and whatever fsspec opens.

`store_for(url)` answers with the store of a location. Client libraries are imported when a store first needs one.
"""

from __future__ import annotations

from functools import cache

from raymerge.storage.base import CopyRange, Lent, ObjectInfo, ObjectWriter, Store
from raymerge.storage.crc32 import crc32_combine
from raymerge.storage.traffic import Traffic, traffic
from raymerge.storage.urls import base_name, is_local, join_url, normalize_url, parent_url, redact, scheme_of

__all__ = [
    "CopyRange",
    "Lent",
    "ObjectInfo",
    "ObjectWriter",
    "Store",
    "Traffic",
    "base_name",
    "crc32_combine",
    "is_local",
    "join_url",
    "normalize_url",
    "parent_url",
    "redact",
    "scheme_of",
    "store_for",
    "traffic",
]


def store_for(url: str) -> Store:
    """The store that serves `url`. Stores are cheap, safe to use from many threads, and carry no client in a pickle."""
    return _store(scheme_of(url))


@cache
def _store(scheme: str) -> Store:
    if scheme in ("", "file", "local"):
        from raymerge.storage.local import LocalStore

        return LocalStore()
    if scheme == "s3":
        from raymerge.storage.s3 import S3Store

        return S3Store()
    if scheme == "hf":
        from raymerge.storage.hub import HubStore

        return HubStore()
    if scheme == "hf-spool":
        from raymerge.storage.hub_spool import SpoolStore

        return SpoolStore()
    from raymerge.storage.generic import GenericStore

    return GenericStore(scheme)
