"""What follows the encoder of a sentence model: folders that its modules.json names (pooling, dense layers)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from raymerge.checkpoint.nouns import Checkpoint
from raymerge.errors import CheckpointError, NotFoundError, Problem
from raymerge.storage import base_name, join_url, store_for

MODULES_NAME = "modules.json"
SENTENCE_CONFIGS = (MODULES_NAME, "sentence_bert_config.json", "config_sentence_transformers.json")
_FOLDER = re.compile(r"\w[\w.-]*")  # one level: "1_Pooling"; the encoder itself is ""
_MAX_FILE_BYTES = 256 * 2**20  # a dense module of 4096 x 4096 has 64 MB


def module_files(donor: Checkpoint, modules: bytes) -> dict[str, bytes]:
    """The files of every module's folder by their path below the donor; `modules` is the text of its modules.json.

    Modules without settings (normalisation) need have no folder. Raises CheckpointError where the text is no JSON.
    """
    store = store_for(donor.url)
    files = {}
    for folder in module_folders(modules, subject=f"{donor.reference}/{MODULES_NAME}"):
        try:
            infos = store.list(join_url(donor.url, folder))
        except NotFoundError:
            continue
        for info in infos:
            files[f"{folder}/{base_name(info.url)}"] = store.read(info.url, max_bytes=_MAX_FILE_BYTES)
    return files


def module_folders(modules: bytes, *, subject: str) -> Iterator[str]:
    """The folders that a modules.json with this text names. Raises CheckpointError naming it as `subject`."""
    try:
        listed: Any = json.loads(modules.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        remedy = "download or write it again"
        raise CheckpointError(
            Problem(subject=subject, message=f"is not valid JSON ({error})", remedy=remedy)
        ) from error
    for each in listed if isinstance(listed, list) else ():
        path = each.get("path") if isinstance(each, dict) else None
        if isinstance(path, str) and _FOLDER.fullmatch(path):
            yield path
