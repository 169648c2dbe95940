from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama

SHAPE: dict[str, Any] = {"layers": 4, "hidden": 256, "heads": 4, "vocab": 2048, "intermediate": 512}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes whose changes lie on the bfloat16 grid, so that many magnitudes are equal."""
    root = tmp_path_factory.mktemp("models")
    write_llama(root / "base", seed=0, shard_bytes=2_000_000, **SHAPE)
    for seed, name in ((1, "a"), (2, "b")):
        write_llama(root / name, seed=seed, delta_of=root / "base", **SHAPE)
    return root
