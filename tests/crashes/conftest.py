from __future__ import annotations

import sys
from pathlib import Path

import pytest
from checkpoints import write_llama

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a size that makes shards which S3 takes in two parts."""
    root = tmp_path_factory.mktemp("models")
    shape = {"layers": 3, "hidden": 512, "heads": 8, "vocab": 2048, "intermediate": 1024}
    write_llama(root / "base", seed=0, **shape)
    for seed, name in ((1, "a"), (2, "b")):
        write_llama(root / name, seed=seed, delta_of=root / "base", **shape)
    return root
