"""What importing costs, and where compiled kernels go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLAN = "import raymerge.methods, raymerge.compute, sys; raymerge.methods.all_methods()"
RUN = """
from raymerge.compute import open_operations
from raymerge.dtypes import DType
open_operations().decode(bytes(4), DType.BF16)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=inherited | environment,
        check=True,
        capture_output=True,
        text=True,
    )


def test_declaring_methods_imports_no_array_library() -> None:
    heavy = python(f"{PLAN}; print([name for name in ('numpy', 'numba', 'torch') if name in sys.modules])")
    assert heavy.stdout.strip() == "[]"


def test_the_cpu_needs_no_torch() -> None:
    assert python(f"{RUN}\nimport sys; print('torch' in sys.modules)").stdout.strip() == "False"


def test_kernels_are_kept_per_user_and_version(tmp_path: Path) -> None:
    python(RUN, XDG_CACHE_HOME=str(tmp_path))
    (folder,) = (tmp_path / "raymerge").iterdir()
    assert folder.name.startswith("kernels-")
    assert list(folder.rglob("*.nbi"))


def test_kept_kernels_load_without_what_compiles_and_others_compile_beside_them(tmp_path: Path) -> None:
    registries = "import sys; print('numba.cpython.listobj' in sys.modules)"
    more = "import numpy as np\nprint(open_operations().count_nonfinite(np.array([1, np.nan], np.float32)))"
    code = f"{RUN}\n{registries}\n{more}"
    first, second, third = (python(code, NUMBA_CACHE_DIR=str(tmp_path)) for code in (RUN, code, code))
    assert first.stdout == ""
    assert second.stdout.split() == ["False", "1"]
    assert third.stdout.split() == ["False", "1"]


def test_kernels_are_kept_there_by_whoever_imported_numba_before(tmp_path: Path) -> None:
    python(f"import numba\n{RUN}", XDG_CACHE_HOME=str(tmp_path))
    assert list((tmp_path / "raymerge").rglob("*.nbi"))


def test_a_named_cache_folder_is_respected(tmp_path: Path) -> None:
    python(RUN, NUMBA_CACHE_DIR=str(tmp_path / "here"), XDG_CACHE_HOME=str(tmp_path / "there"))
    assert list((tmp_path / "here").rglob("*.nbi"))
    assert not (tmp_path / "there").exists()


def test_without_a_folder_to_write_kernels_still_compile_in_silence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = python(RUN, XDG_CACHE_HOME=str(file), HOME=str(file), TMPDIR=str(tmp_path))
    assert done.stderr == ""
    done = python(RUN, NUMBA_CACHE_DIR=str(file))
    assert done.stderr == ""
