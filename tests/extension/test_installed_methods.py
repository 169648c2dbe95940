"""Packages offer methods through the entry-point group `raymerge.methods`, to the driver and to every worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_llama
from merges import folder_digest

MODULE = """\
from raymerge import merge_method
from offers_means.arithmetic import mean

@merge_method("installed_mean", summary="mean", formula="mean", source="a test")
def installed_mean(inputs):
    return lambda block: mean(block)
"""
HELPER = """\
def mean(block):
    return block.operations.weighted_sum([1 / len(block.x)] * len(block.x), block.x)
"""
SCRIPT = """\
import json, sys
import raymerge
config, out = json.loads(sys.argv[1]), sys.argv[2]
try:
    raymerge.merge(config, out, executor=sys.argv[3], out_shard_size="50KB")
except raymerge.RaymergeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds an installed package, metadata and all."""
    root = tmp_path / "site"
    package, metadata = root / "offers_means", root / "offers_means-1.2.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "arithmetic.py").write_text(HELPER)
    (package / "methods.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: offers-means\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[raymerge.methods]\nmean = offers_means.methods\n")
    return root


def run(site: Path, tmp_path: Path, out: str, executor: str = "inline") -> subprocess.CompletedProcess[str]:
    for seed, name in enumerate("ab"):
        if not (tmp_path / name).exists():
            write_llama(tmp_path / name, seed=seed)
    config = {"merge_method": "installed_mean", "models": [{"model": str(tmp_path / name)} for name in "ab"]}
    command = [sys.executable, "-c", SCRIPT, json.dumps(config), str(tmp_path / out), executor]
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_installed_method_runs_inline_and_on_ray(installed: Path, tmp_path: Path) -> None:
    for executor in ("inline", "ray"):
        done = run(installed, tmp_path, executor, executor)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "ray").glob("model-*-of-*"))) > 1
    assert folder_digest(tmp_path / "ray") == folder_digest(tmp_path / "inline")


def test_a_new_release_never_continues_an_output(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "out").returncode == 0
    (installed / "offers_means" / "methods.py").write_text(MODULE + "# 1.2.1\n")
    done = run(installed, tmp_path, "out")
    assert "PlanError" in done.stderr
    assert "merge_method_sha256" in done.stderr


def test_a_package_that_cannot_be_loaded_is_named(installed: Path, tmp_path: Path) -> None:
    (installed / "offers_means" / "arithmetic.py").unlink()
    done = run(installed, tmp_path, "out")
    assert "UsageError: offers-means 1.2: its merge methods (offers_means.methods) cannot be loaded" in done.stderr
    assert "offers_means.arithmetic" in done.stderr
