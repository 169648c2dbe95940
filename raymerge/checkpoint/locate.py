"""What a model reference means: a local folder, a model on the hub, or a folder in some store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from raymerge.errors import CheckpointError, NotFoundError, Problem
from raymerge.storage import is_local, normalize_url

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_SCHEME = "hf://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A folder that may hold a checkpoint. `missing` is the problem to report if there is nothing there."""

    url: str
    origin: str
    missing: Problem
    hub_id: str | None = None
    commit: str | None = None
    notes: tuple[str, ...] = ()


def locate(reference: str, *, revision: str | None, display: str, cwd: str) -> Location:
    """Find where `reference` points. A local folder named like a hub id wins, with a note."""
    if reference.startswith(_HUB_SCHEME):
        return _hub(reference, revision=revision, display=display)
    url = normalize_url(reference, cwd=cwd)
    if not is_local(url):
        _refuse_revision(revision, display=display, what="a URL", remedy="drop the revision")
        missing = Problem(subject=display, message="not found: nothing lies there", remedy="check the URL")
        return Location(url=url, origin="range-read", missing=missing)
    if Path(url).exists():
        return _folder(url, reference, revision=revision, display=display)
    if _HUB_ID.fullmatch(reference):
        return _hub(reference, revision=revision, display=display, looked_at=url)
    raise CheckpointError(
        Problem(
            subject=display,
            message=f"not found: there is no folder {url}, and it does not look like a hub id (org/name)",
            remedy="check the path; relative paths start at the working directory",
        )
    )


def _folder(url: str, reference: str, *, revision: str | None, display: str) -> Location:
    like_hub_id = _HUB_ID.fullmatch(reference) is not None
    remedy = f"write hf://{reference}@{revision} for the hub's model" if like_hub_id else "drop the revision"
    _refuse_revision(revision, display=display, what=f"the local folder {url}", remedy=remedy)
    if not Path(url).is_dir():
        raise CheckpointError(
            Problem(subject=display, message="is a file, expected a folder", remedy=f"name {Path(url).parent} instead")
        )
    missing = Problem(
        subject=display, message=f"the folder {url} is empty", remedy="name the folder that holds config.json"
    )
    note = f"the local folder {url} is used, not the hub's {reference}"
    return Location(url=url, origin="local folder", missing=missing, notes=(note,) if like_hub_id else ())


def _hub(reference: str, *, revision: str | None, display: str, looked_at: str = "") -> Location:
    """`reference` is org/name or hf://org/name[@revision]; `looked_at` is the local folder that does not exist."""
    from raymerge.storage.hub import resolve_model

    nowhere = f"there is no folder {looked_at}, and " if looked_at else ""
    try:
        model = resolve_model(reference, revision)
    except NotFoundError as error:
        raise CheckpointError(
            Problem(
                subject=display,
                message=f"not found: {nowhere}the hub says: {error.problems[0].message}",
                remedy=error.problems[0].remedy or "check the name; a private model needs a token (hf auth login)",
            )
        ) from error
    missing = Problem(subject=display, message="the hub has no files of it", remedy="check the name and the revision")
    return Location(url=model.url, origin=model.origin, missing=missing, hub_id=model.repo, commit=model.commit)


def _refuse_revision(revision: str | None, *, display: str, what: str, remedy: str) -> None:
    if revision is not None:
        raise CheckpointError(
            Problem(subject=display, message=f"{what} has no revisions, found @{revision}", remedy=remedy)
        )
