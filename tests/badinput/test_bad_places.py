"""Places that cannot be read or written, and disks that are full: said before work where it can be known."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama

import raymerge
from raymerge.errors import RaymergeError
from raymerge.events import TaskFinished


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """mounted(options) is a folder on a file system of its own in memory; skips where mounting is not allowed."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    done: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(done)}"
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"mounting is not allowed here: {made.stderr.strip()}")
        done.append(folder)
        return folder

    yield mount
    for folder in done:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def everybodys(pristine: Path) -> Iterator[Any]:
    """Copies of the models that any user reaches, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    shutil.copytree(pristine, folder / "models")
    for path in (folder / "models", *(folder / "models").rglob("*")):
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def recipe(folder: Path) -> str:
    models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in "ab"]
    return json.dumps({"merge_method": "linear", "models": models}, indent=1) + "\n"


def test_a_destination_that_is_a_file_or_below_one(refused: Callable[..., str], models: Any) -> None:
    file = models.folder / "file"
    file.write_text("mine")
    refused(models.recipe(), str(file), out=file)
    refused(models.recipe(), str(file), out=file / "deeper" / "still")
    assert file.read_text() == "mine"
    loop = models.folder / "loop"
    loop.symlink_to("loop")
    refused(models.recipe(), str(loop), "symbolic links", out=loop)
    refused(models.recipe(), str(loop), "symbolic links", out=loop / "out")


def test_a_destination_in_proc(refused: Callable[..., str], models: Any) -> None:
    refused(models.recipe(), "/proc/raymerge", out=Path("/proc/raymerge/out"))


def test_a_read_only_destination(refused: Callable[..., str], models: Any, mounted: Callable[..., Path]) -> None:
    folder = mounted("size=4m,ro")
    refused(models.recipe(), str(folder), "Read-only file system", out=folder / "out")


def test_a_destination_of_somebody_else(
    run: Callable[..., Any], everybodys: Path, as_nobody: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    out = everybodys / "out"
    out.mkdir(mode=0o755)
    if os.geteuid() != 0:
        out.chmod(0o555)
    with as_nobody():
        result = run("merge", "-", str(out), "--executor", "inline", input=recipe(everybodys / "models"))
    assert result.code == 2
    assert f"{out} cannot write to it: Permission denied" in result.text
    assert os.listdir(out) == []


def test_an_immutable_destination(refused: Callable[..., str], models: Any) -> None:
    out = models.folder / "out"
    out.mkdir()
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", out], check=False).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        refused(models.recipe(), str(out), "not permitted", out=out)
    finally:
        subprocess.run(["chattr", "-i", out], check=True)


def test_the_destination_is_an_input(refused: Callable[..., str], run: Callable[..., Any], models: Any) -> None:
    refused(models.recipe(), str(models.a), "one of the models", out=models.a)
    refused(models.recipe(), str(models.a), "one of the models", out=models.folder / "b" / ".." / "a")
    link = models.folder / "link"
    link.symlink_to(models.a)
    refused(models.recipe(), "one of the models", out=link)
    result = run("merge", "-", str(link), "--executor", "inline", "--overwrite", input=models.recipe())
    assert result.code == 2
    assert (models.a / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_a_model_of_somebody_else(
    run: Callable[..., Any],
    everybodys: Path,
    as_nobody: Callable[[], contextlib.AbstractContextManager[None]],
    name: str,
) -> None:
    target = everybodys / "models" / "a" / name
    target.chmod(0)
    with as_nobody():
        text = recipe(everybodys / "models")
        result = run("merge", "-", str(everybodys / "out"), "--executor", "inline", input=text)
    target.chmod(0o755)
    assert result.code == 2
    assert "Permission denied" in result.text
    assert str(target) in result.text
    assert not (everybodys / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_no_file(refused: Callable[..., str], models: Any, name: str, kind: str) -> None:
    target = models.a / name
    target.unlink()
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(name)
    refused(models.recipe(), str(models.a))


def test_a_recipe_that_cannot_be_read(run: Callable[..., Any], tmp_path: Path) -> None:
    binary = tmp_path / "weights.yml"
    binary.write_bytes(b"\x80\x04\xff" * 100)
    for config, said in ((tmp_path, "folder"), (tmp_path / "nowhere.yml", "no such file"), (binary, "UTF-8")):
        result = run("merge", str(config), str(tmp_path / "out"), "--executor", "inline")
        assert result.code == 2
        assert str(config) in result.text
        assert said in result.text
        assert "Traceback" not in result.text


def test_a_disk_with_too_little_room_is_refused_before_work(
    refused: Callable[..., str], models: Any, mounted: Callable[..., Path]
) -> None:
    folder = mounted("size=40k")
    refused(models.recipe(), str(folder / "out"), "bytes are needed", "are free", out=folder / "out")
    assert list(folder.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile(models: Any, mounted: Callable[..., Path], tmp_path: Path) -> None:
    """The failed shard leaves nothing, finished ones stay, and with room again the same call completes the merge."""
    for seed, name in enumerate("ab", start=1):
        write_llama(models.folder / f"large {name}", layers=6, hidden=64, seed=seed)
    config = json.loads(models.recipe())
    for each, name in zip(config["models"], "ab", strict=True):
        each["model"] = str(models.folder / f"large {name}")
    options: dict[str, Any] = {"executor": "inline", "out_shard_size": "100KB", "task_cpus": 1}
    folder = mounted("size=2m")
    out, filler = folder / "out", folder / "filler"

    def fill(event: Any) -> None:
        if isinstance(event, TaskFinished) and not filler.exists():
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass

    with pytest.raises(RaymergeError) as caught:
        raymerge.merge(config, out, on_event=fill, **options)
    assert caught.value.exit_code == 1
    assert "No space left on device" in str(caught.value)
    assert "are free" in str(caught.value)
    assert ".safetensors" in str(caught.value)
    left = os.listdir(out)
    assert [name for name in left if name.endswith(".safetensors")]
    assert not [name for name in left if name.endswith((".partial", ".index.json"))]
    assert json.loads((out / "raymerge.json").read_text())["state"] == "running"
    finished = {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
    filler.unlink()
    assert raymerge.merge(config, out, **options).kept_count == len(finished)
    raymerge.merge(config, tmp_path / "undisturbed", **options)
    assert finished.items() <= {path.name: path.stat().st_ino for path in out.iterdir()}.items()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "undisturbed").iterdir()
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{a}/config.json/out"], "config.json"),
        (["/proc/raymerge"], "/proc/raymerge cannot write to it"),
        (["{a}"], "one of the models"),
    ],
)
def test_real_commands_end_with_a_sentence(models: Any, tmp_path: Path, arguments: list[str], said: str) -> None:
    config = tmp_path / "recipe.yml"
    config.write_text(models.recipe())
    out = [argument.format(a=models.a) for argument in arguments]
    found = subprocess.run(
        [sys.executable, "-m", "raymerge", "merge", str(config), *out], check=False, capture_output=True, text=True
    )
    assert found.returncode == 2
    text = " ".join(found.stderr.split())
    assert said in text
    assert text.startswith(f"error: {config} cannot run: 1 problem")
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


def test_a_gated_model_says_what_to_do(
    refused: Callable[..., str], models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told at plan time, before any weight is asked for; a model that is not on the hub is told beside it."""
    from hub_server import hub_env, start_hub

    from raymerge.storage.process import _forget_all

    _forget_all()
    with start_hub(tmp_path / "hub") as hub, hub_env(hub):
        hub.add_folder("org/gated", models.a, gated=True)
        config = json.loads(models.recipe("org/gated"))
        config["models"].append({"model": "org/nowhere", "parameters": {"weight": 1}})
        text = refused(json.dumps(config, indent=1) + "\n", "2 problems", "org/gated", "gated", "org/nowhere")
        assert "accept" in text
        assert "huggingface.co" in text or hub.endpoint in text
        assert hub.weight_bytes == 0
    _forget_all()
