"""The small files beside the weights."""

from __future__ import annotations

from raymerge.output.config import config_json
from raymerge.plan.nouns import Plan


def side_files(plan: Plan) -> dict[str, bytes]:
    """Contents by file name."""
    return {"config.json": config_json(plan.output_config)}
