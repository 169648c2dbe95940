"""How far an output is, from its store alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raymerge.checkpoint.header import parse_header
from raymerge.checkpoint.open import read_header
from raymerge.errors import CheckpointError, NotFoundError
from raymerge.output.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardRecord, State, parse_manifest
from raymerge.planning.header import PLAN_KEY
from raymerge.storage import base_name, join_url, store_for
from raymerge.storage.base import ObjectInfo, Store

_CONCURRENT_HEADERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """What lies in an output folder. `manifest` is None where no merge has begun there.

    `done` shards have the planned size and digest, `wrong` ones are there and have not. `loose` names what writers
    began and have not finished, None where the store cannot say. `last_activity` is in seconds since 1970, of the
    newest shard or, before the first, of the manifest; None where the store does not tell.
    """

    out: str
    manifest: Manifest | None = None
    done: tuple[ShardRecord, ...] = ()
    wrong: tuple[str, ...] = ()
    loose: tuple[str, ...] | None = None
    first_activity: float | None = None
    last_activity: float | None = None

    @property
    def is_complete(self) -> bool:
        """Every shard is there and the manifest says so."""
        return self.manifest is not None and self.manifest.state is State.COMPLETE and not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """Planned shards that are not done, in order."""
        done = {shard.file_name for shard in self.done}
        shards = self.manifest.shards if self.manifest is not None else ()
        return tuple(shard.file_name for shard in shards if shard.file_name not in done)

    @property
    def done_bytes(self) -> int:
        return sum(shard.nbytes for shard in self.done)


def status(out_url: str) -> StatusReport:
    """Read the manifest and one small range of each shard present. Raises VerifyError for a damaged manifest."""
    store = store_for(out_url)
    try:
        infos = {base_name(info.url): info for info in store.list(out_url)}
    except NotFoundError:
        infos = {}
    if MANIFEST_NAME not in infos:
        return StatusReport(out=out_url)
    subject = join_url(out_url, MANIFEST_NAME)
    manifest = parse_manifest(store.read(subject, max_bytes=MAX_MANIFEST_BYTES), subject=subject)
    present = [shard for shard in manifest.shards if shard.file_name in infos]
    with ThreadPoolExecutor(_CONCURRENT_HEADERS) as pool:
        good = list(pool.map(lambda shard: _is_done(store, infos[shard.file_name], shard, manifest), present))
    done = tuple(shard for shard, is_done in zip(present, good, strict=True) if is_done)
    times = [infos[shard.file_name].modified for shard in done] or [infos[MANIFEST_NAME].modified]
    known = [time for time in times if time is not None]
    return StatusReport(
        out=out_url,
        manifest=manifest,
        done=done,
        wrong=tuple(shard.file_name for shard, is_done in zip(present, good, strict=True) if not is_done),
        loose=store.unfinished(out_url),
        first_activity=min(known, default=None),
        last_activity=max(known, default=None),
    )


def _is_done(store: Store, info: ObjectInfo, shard: ShardRecord, manifest: Manifest) -> bool:
    if info.nbytes != shard.nbytes:
        return False
    try:
        header = read_header(store, info, shard.file_name)
        _, metadata = parse_header(header, info.nbytes, shard.file_name)
    except CheckpointError:
        return False
    return metadata.get(PLAN_KEY) == manifest.plan_digest
