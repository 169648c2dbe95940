"""What the folder's prose and its Dockerfile name is there."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from cluster_files import FOLDER, ROOT

FILES = sorted(path.name for path in FOLDER.iterdir())


def test_the_dockerfile_copies_what_exists() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lines = re.findall(r"^COPY --chown=ray (.+)$", text, re.MULTILINE)
    sources = [name for line in lines for name in line.split()[:-1]]
    assert len(sources) > 3
    assert [name for name in sources if not (ROOT / name).exists()] == []


def test_everything_that_an_installation_reads_is_copied() -> None:
    """pyproject.toml's readme and licence files, and where the manifest inside the package points."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    link = (ROOT / "raymerge" / "submit" / "kuberay-rayjob.yaml").readlink()
    target = PurePosixPath("raymerge/submit") / link.as_posix()
    assert target.as_posix().endswith("../../cluster/kuberay-rayjob.yaml")
    for name in ("README.md", "LICENSE", "constraints.txt", "cluster/kuberay-rayjob.yaml"):
        assert name in text


@pytest.mark.parametrize("name", FILES)
def test_the_walk_through_covers_every_file(name: str) -> None:
    if name == "README.md":
        return
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| [{name}]"))
    assert "never" in row or name == "grafana-dashboard.json"


def test_versions_are_those_of_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^(torch|ray|botocore)==(\S+)$", constraints, re.MULTILINE))
    for name in ("aws-spot.yaml", "gcp-spot.yaml", "skypilot.yaml", "Dockerfile"):
        assert set(re.findall(r"torch==([\d.]+)", (FOLDER / name).read_text(encoding="utf-8"))) == {pins["torch"]}
    assert f"rayVersion: {pins['ray']}\n" in (FOLDER / "kuberay-rayjob.yaml").read_text(encoding="utf-8")
    assert f"boto3=={pins['botocore']} " in (FOLDER / "aws-spot.yaml").read_text(encoding="utf-8")
