"""Small JSON files of a checkpoint, read with errors that name the file."""

from __future__ import annotations

import json
from typing import Any

from raymerge.errors import CheckpointError, Problem


def json_object(text: bytes, subject: str) -> dict[str, Any]:
    """The JSON object in `text`. Infinity and NaN are taken: transformers writes them (Mamba-2's time_step_limit)."""
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            Problem(subject=subject, message=f"is not valid JSON ({error})", remedy="download or write it again")
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            Problem(subject=subject, message=f"holds a {type(value).__name__}, expected a JSON object")
        )
    return value
