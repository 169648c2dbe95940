"""Commands that must be refused: what they print, how they end, and that they leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from typer.testing import CliRunner

from raymerge.cli.app import app

NOBODY = 65534


@dataclass(frozen=True)
class Models:
    """A base and two fine-tunes of it; `b` is sharded, with an index. Copies may be damaged."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def a(self) -> Path:
        return self.folder / "a"

    @property
    def b(self) -> Path:
        return self.folder / "b"

    def recipe(self, second: Any = None, **changes: Any) -> str:
        """A linear merge of `a` and `second` (`b` if not given), as YAML text."""
        names = [str(self.a), str(second or self.b)]
        models = [{"model": name, "parameters": {"weight": 0.5}} for name in names]
        return json.dumps({"merge_method": "linear", "models": models, "dtype": "bfloat16", **changes}, indent=1) + "\n"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_llama(folder / "base", layers=2)
    write_llama(folder / "a", layers=2, seed=1, delta_of=folder / "base")
    write_llama(folder / "b", layers=2, seed=2, delta_of=folder / "base", shard_bytes=20_000)
    return folder


@pytest.fixture
def models(pristine: Path, tmp_path: Path) -> Models:
    return Models(shutil.copytree(pristine, tmp_path / "models"))


@dataclass(frozen=True)
class Result:
    code: int
    text: str
    """Everything printed, each run of white space as one space: messages wrap."""


@pytest.fixture(scope="session")
def run() -> Callable[..., Result]:
    """run("plan", "-", input=recipe) runs a command in this process."""

    def invoke(*arguments: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=input, env={"COLUMNS": "500"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return Result(code=result.exit_code, text=" ".join((result.stdout + result.stderr).split()))

    return invoke


@pytest.fixture
def refused(run: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """refused(recipe, "tensor", "file") merges and expects an error that says all of it; returns what was printed.

    `code` is 2 where the recipe, its inputs or the destination are to blame and nothing was begun. `out` is a folder
    that does not exist; another one must be left as it was.
    """

    def merge(recipe: str, *said: str, code: int = 2, out: Path | None = None, **options: str) -> str:
        given = out
        out = out or tmp_path / "refused"
        before = contents(out)
        extra = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
        result = run("merge", "-", str(out), "--executor", "inline", *extra, input=recipe)
        assert result.code == code, result.text
        for each in said:
            assert each in result.text
        assert "Traceback" not in result.text
        assert "did not expect" not in result.text
        assert contents(out) == before
        assert given is not None or not out.exists()
        return result.text

    return merge


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change by name; empty where there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: (entry.inode(), entry.stat(follow_symlinks=False).st_mtime_ns) for entry in entries}


@pytest.fixture
def as_nobody() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Permissions mean nothing to root: inside this, files are opened with the rights of another user."""

    @contextlib.contextmanager
    def lowered() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        try:
            os.seteuid(NOBODY)
        except OSError as error:
            pytest.skip(f"this root cannot become another user: {error}")
        try:
            yield
        finally:
            os.seteuid(0)

    return lowered
