"""Merges that die at a step of the commit: `python crash_at.py JSON`, one forked child for each, imports paid once.

The JSON is a list of [point, recipe, out, options]; what is printed is the exit status of each child, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import raymerge
import raymerge.merging.shard
from raymerge.storage import base, local_writer, s3_parts, s3_writer
from raymerge.storage.local import LocalStore
from raymerge.storage.s3 import S3Store

CRASHED = 86
WRITERS = (local_writer.LocalWriter, s3_writer.S3Writer)


def die() -> None:
    os._exit(CRASHED)


def name_of(writer: Any) -> str:
    return str(writer._url.rpartition("/")[2])


def crash_around(name: str, *, state: str = "", after: bool) -> None:
    """Die before or after the small object `name` is written; of the manifest, the one of that state."""

    def dying(plain: Callable[..., Any]) -> Callable[..., Any]:
        def put(store: Any, url: str, data: bytes) -> Any:
            hit = url.endswith(f"/{name}") and state in data.decode()
            if hit and not after:
                die()
            info = plain(store, url, data)
            if hit:
                die()
            return info

        return put

    base.Store.put = dying(base.Store.put)
    for kind in (LocalStore, S3Store):
        kind.put_new = dying(kind.put_new)


def crash_in_shard(method: str, *, after: bool, of: tuple[type, ...] = WRITERS, count: int = 1) -> None:
    """Die before or after the `count`-th call of a writer's method in the second shard."""
    for kind in of:
        setattr(kind, method, _dying(getattr(kind, method), after=after, count=count))


def _dying(plain: Callable[..., Any], *, after: bool, count: int) -> Callable[..., Any]:
    calls = iter(range(1, 1 << 30))

    def call(writer: Any, *arguments: Any, **options: Any) -> Any:
        if not name_of(writer).startswith("model-00002-of-"):
            return plain(writer, *arguments, **options)
        hit = next(calls) == count
        if hit and not after:
            die()
        result = plain(writer, *arguments, **options)
        if hit:
            die()
        return result

    return call


def after_everything() -> None:
    from raymerge import pipeline

    plain = pipeline.finish
    pipeline.finish = lambda *arguments: (plain(*arguments), die())[0]


POINTS: dict[str, Callable[[], None]] = {
    "before the running manifest": lambda: crash_around("raymerge.json", state='"running"', after=False),
    "after the running manifest": lambda: crash_around("raymerge.json", state='"running"', after=True),
    "before the config": lambda: crash_around("config.json", after=False),
    "before the first byte of a shard": lambda: crash_in_shard("write", after=False),
    "in the middle of a shard": lambda: crash_in_shard("write", after=True, count=3),
    "before the shard's put": lambda: crash_in_shard("commit", after=False),
    "before the shard's rename": lambda: crash_in_shard("_rename", after=False, of=WRITERS[:1]),
    "after the shard's rename": lambda: crash_in_shard("_rename", after=True, of=WRITERS[:1]),
    "between the parts of a shard": lambda: crash_in_shard("_send_part", after=True, of=WRITERS[1:]),
    "before the shard's upload is completed": lambda: crash_in_shard("_send_complete", after=False, of=WRITERS[1:]),
    "after the shard's upload is completed": lambda: crash_in_shard("_send_complete", after=True, of=WRITERS[1:]),
    "before the shard's receipt": lambda: crash_in_shard("commit", after=True),
    "before the index": lambda: crash_around("model.safetensors.index.json", after=False),
    "after the index": lambda: crash_around("model.safetensors.index.json", after=True),
    "before the complete manifest": lambda: crash_around("raymerge.json", state='"complete"', after=False),
    "after the complete manifest": lambda: crash_around("raymerge.json", state='"complete"', after=True),
    "after everything": after_everything,
}
LOCAL_ONLY = ("before the shard's rename", "after the shard's rename")
S3_ONLY = tuple(point for point in POINTS if "parts" in point or "upload" in point)


def main() -> None:
    statuses = []
    for point, recipe, out, options in json.loads(sys.stdin.read()):
        child = os.fork()
        if not child:
            try:
                s3_parts.part_bytes = lambda nbytes: s3_parts.SMALLEST_PART_BYTES  # shards of several parts
                POINTS[point]()
                raymerge.merge(recipe, out, **options)
            except BaseException:  # noqa: BLE001 - a child ends here, whatever happens
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(statuses))


if __name__ == "__main__":
    main()
