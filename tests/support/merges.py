"""Recipes and digests that tests of whole merges share."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def two_tune_recipe(
    models: str | Path, method: str = "ties", *, weights: tuple[float, float] = (0.6, 0.4)
) -> dict[str, Any]:
    """`base`, `a` and `b` of a folder or URL."""
    parameters = [{"weight": weight} for weight in weights]
    if method != "task_arithmetic":
        parameters = [{**each, "density": 0.4} for each in parameters]
    return {
        "merge_method": method,
        "base_model": f"{models}/base",
        "dtype": "bfloat16",
        "models": [
            {"model": f"{models}/{name}", "parameters": each} for name, each in zip("ab", parameters, strict=True)
        ],
    }


def folder_digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


# Slows every tensor down, so that a test can act while a small merge runs.
SLOW_MERGE = """
import json, sys, time, raymerge
from raymerge.merging import shard
plain = shard.merge_held
shard.merge_held = lambda *a, **k: (time.sleep({seconds}), plain(*a, **k))[1]
raymerge.merge(json.loads(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))
"""


def start_merge(
    recipe: Mapping[str, Any],
    out: str | Path,
    *,
    seconds_per_tensor: float = 0.0,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """A merge in a process group of its own; `seconds_per_tensor` slows inline merges down."""
    return start_code(SLOW_MERGE.format(seconds=seconds_per_tensor), recipe, out, env=env, **options)


def start_code(
    code: str, recipe: Mapping[str, Any], out: str | Path, *, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Python code in a process group of its own; it finds recipe, output and options as JSON in sys.argv."""
    command = [sys.executable, "-c", code, json.dumps(recipe), str(out), json.dumps(options)]
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, **(env or {})})


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], *, timeout_seconds: float = 120) -> None:
    """SIGKILL the whole process group once `ready()` holds; fails if the process ends before."""
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        assert process.poll() is None, "the merge ended before it could be killed"
        assert time.monotonic() < deadline, "the merge did not come far enough to be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
