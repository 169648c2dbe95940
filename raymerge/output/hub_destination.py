"""A merge whose OUT is a model on the hub: what is looked at before it starts, and the one commit at its end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace

from raymerge.errors import StorageError
from raymerge.output.card import CARD_NAME
from raymerge.output.journal import Destination
from raymerge.output.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardRecord, parse_manifest
from raymerge.output.push import check_repository, published_manifest, side_files_of
from raymerge.planning.nouns import Plan
from raymerge.storage import ObjectInfo, base_name, join_url, scheme_of, store_for
from raymerge.storage.hub_push import (
    Repository,
    Upload,
    check_card,
    find_repository,
    open_repository,
    require_token,
)
from raymerge.storage.hub_spool import SCHEME, sent_file, spool_folder, spool_repo


def publication(out: str, *, private: bool, overwrite: bool) -> HubDestination | InPlace:
    """What makes a finished merge at `out` public: nothing, unless `out` is the spool of a repository."""
    if scheme_of(out) != SCHEME:
        return InPlace()
    return HubDestination(spool=out, repo=spool_repo(out), private=private, overwrite=overwrite)


class InPlace:
    """An output that is where it belongs as soon as it is written."""

    def look(self, _plan: Plan, destination: Destination, _files: Mapping[str, bytes]) -> Destination:
        return destination

    def open(self) -> None: ...

    def publish(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDestination:
    """The repository that a spool's files are for."""

    spool: str
    repo: str
    private: bool
    overwrite: bool

    def look(self, plan: Plan, destination: Destination, files: Mapping[str, bytes]) -> Destination:
        """`destination` with the shards of this plan that the repository shows already. Changes nothing.

        Raises AccessError without a token, PlanError for a repository that holds something else.
        """
        if destination.may_hold_nonfinite:  # what was sent ahead cannot be looked through any more; it is made again
            destination = replace(destination, kept={})
        require_token(self.repo)
        if CARD_NAME in files:
            check_card(self.repo, files[CARD_NAME].decode("utf-8", "replace"))
        found = find_repository(self.repo)
        if found is None:
            return destination
        check_repository(found, plan.digest, (), private=self.private, overwrite=self.overwrite)
        shown = published_manifest(found)
        manifest = destination.manifest or shown
        if shown is None or shown.plan_digest != plan.digest or manifest is None or manifest.is_tolerant:
            return destination
        kept = {shard.file_name: info for shard in shown.shards if (info := self._shown(found, shard)) is not None}
        return replace(destination, kept={**kept, **destination.kept}, manifest=manifest)

    def _shown(self, found: Repository, shard: ShardRecord) -> ObjectInfo | None:
        file = found.files.get(shard.file_name)
        if file is None or file.nbytes != shard.nbytes or shard.crc32 is None:
            return None
        url = join_url(self.spool, shard.file_name)
        return ObjectInfo(url=url, nbytes=file.nbytes, version=file.hash, identity=file.identity, crc32=shard.crc32)

    def open(self) -> None:
        """Make the repository if there is none. Raises AccessError for a token that may not."""
        open_repository(self.repo, private=self.private)

    def publish(self) -> str:
        """Commit everything that the finished spool holds or has sent, and remove the spool; returns the commit."""
        store = store_for(self.spool)
        subject = join_url(self.spool, MANIFEST_NAME)
        manifest = parse_manifest(store.read(subject, max_bytes=MAX_MANIFEST_BYTES), subject=subject)
        infos = {base_name(info.url): info for info in store.list(self.spool)}
        ours = {*infos, *(shard.file_name for shard in manifest.shards)}
        found = open_repository(self.repo, private=self.private)
        stale = check_repository(found, manifest.plan_digest, ours, private=self.private, overwrite=self.overwrite)
        upload = Upload(seen=found)
        sent = self._add_shards(upload, manifest)
        for name, data in side_files_of(self.spool, infos, sent):
            upload.add(name, data)
        for name in stale:
            upload.delete(name)
        commit = self._commit(upload, f"Add merge {manifest.plan_digest[:12]}")
        shutil.rmtree(spool_folder(self.spool), ignore_errors=True)
        return commit

    def _commit(self, upload: Upload, message: str) -> str:
        try:
            return upload.commit(message)
        except StorageError as error:
            if type(error) is not StorageError:  # the others say what to do
                raise
            folder = spool_folder(self.spool)
            remedy = (
                f"the hub may have dropped what was sent long ago: delete {folder}, then run the same command again"
            )
            raise StorageError(*(replace(each, remedy=each.remedy or remedy) for each in error.problems)) from error

    def _add_shards(self, upload: Upload, manifest: Manifest) -> set[str]:
        """Shards that need not go with the commit itself."""
        present = upload.seen.files
        added = set()
        for shard in manifest.shards:
            name = shard.file_name
            sent = sent_file(join_url(self.spool, name))
            if sent is None and name in present:
                upload.keep(name, sha256=bytes.fromhex(present[name].hash))
            elif sent is not None and name in present and present[name].hash == sent.sha256:
                upload.keep(name, sha256=bytes.fromhex(sent.sha256))
            elif sent is not None:
                upload.show(name, nbytes=sent.nbytes, sha256=bytes.fromhex(sent.sha256))
            else:  # the hub wanted it with the commit: it lies in the spool
                continue
            added.add(name)
        return added
