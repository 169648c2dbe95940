"""The local cache of huggingface_hub: snapshots of commits, as links to files named by their content's hash."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model"}


def endpoint() -> str:
    """Read now: huggingface_hub reads HF_ENDPOINT once, when it is imported."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    from huggingface_hub import constants

    text = os.environ.get("HF_HUB_OFFLINE")
    return bool(constants.HF_HUB_OFFLINE) if text is None else text.upper() in ("1", "ON", "YES", "TRUE")


def cache_folder() -> Path:
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.path.expandvars(os.environ["HF_HUB_CACHE"])).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(os.environ["HF_HOME"])).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def snapshot_folder(repo: str, commit: str) -> Path:
    return _repo_folder(repo) / "snapshots" / commit


def cached_commit(repo: str, revision: str) -> str | None:
    """The commit that a branch or tag meant when it was last downloaded; a commit stands for itself."""
    if COMMIT.fullmatch(revision):
        return revision if snapshot_folder(repo, revision).is_dir() else None
    ref = _repo_folder(repo) / "refs" / revision
    text = ref.read_text().strip() if ref.is_file() else ""
    return text if COMMIT.fullmatch(text) and snapshot_folder(repo, text).is_dir() else None


def cached_file(repo: str, commit: str, name: str) -> Path | None:
    """The file on this machine, if it is complete: downloads are linked into a snapshot at their end."""
    path = snapshot_folder(repo, commit) / name
    return path if path.is_file() else None


def content_hash(path: Path) -> str:
    """SHA-256 or git's hash, as the name of the file that a snapshot links to; "" where the cache has no links."""
    target = path.resolve()
    return target.name if target.parent.name == "blobs" and _HASH.fullmatch(target.name) else ""


def file_names(repo: str, commit: str) -> tuple[str, ...]:
    folder = snapshot_folder(repo, commit)
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


def has_weights(repo: str, commit: str, wanted: tuple[str, ...] = ()) -> bool:
    """Whether config and all weight files are there: those of `wanted`, else those that an index or the names tell."""
    folder = snapshot_folder(repo, commit)
    if not (folder / "config.json").is_file():
        return False
    needed = [name for name in wanted if name.endswith(".safetensors") and "/" not in name] or _indexed(folder)
    return bool(needed) and all((folder / name).is_file() for name in needed)


def has_tokenizer(repo: str, commit: str) -> bool:
    folder = snapshot_folder(repo, commit)
    return any((folder / name).is_file() for name in _TOKENIZERS)


def _indexed(folder: Path) -> list[str]:
    for index in sorted(folder.glob("*.index.json")):
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [path.name for path in folder.iterdir() if path.suffix in _WEIGHTS]


def _repo_folder(repo: str) -> Path:
    return cache_folder() / ("models--" + repo.replace("/", "--"))
