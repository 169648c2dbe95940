"""The text of config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def config_json(config: Mapping[str, Any]) -> bytes:
    """`config` as transformers writes it, keys in the donor's order. Infinity, which some configs hold, stays."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
