"""The layers hold: imports point down, each heavy library has one owner, and planning stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_llama

ROOT = Path(__file__).resolve().parent.parent

# From the top down. A part may import any part of a lower layer, and itself; parts of one layer do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("pipeline",),
    ("reporting",),
    ("running",),
    ("output", "execute", "merging", "submit"),
    ("opening", "options"),
    ("planning",),
    ("methods", "recipe", "checkpoint"),
    ("compute", "storage"),
    ("sizes",),
    ("errors", "dtypes", "events", "version"),
)
DEPTH = {part: depth for depth, parts in enumerate(LAYERS) for part in parts}

# Values of a higher layer that a lower one may name: a store is asked for ranges that a checkpoint describes.
UPWARD = {("storage", "raymerge.checkpoint.nouns")}

# Library -> the folders that may import it, inside functions too.
OWNERS: dict[str, tuple[str, ...]] = {
    "ray": ("raymerge/execute/ray/", "raymerge/submit/ray_jobs.py"),
    "yaml": ("raymerge/recipe/",),
    "pydantic": ("raymerge/recipe/",),
    "numba": ("raymerge/compute/",),
    "botocore": ("raymerge/storage/",),
    "aiobotocore": ("raymerge/storage/",),
    "boto3": ("raymerge/storage/",),
    "s3fs": ("raymerge/storage/",),
    "fsspec": ("raymerge/storage/",),
    "huggingface_hub": ("raymerge/storage/",),
    "typer": ("raymerge/cli/",),
    "click": ("raymerge/cli/",),
    "rich": ("raymerge/cli/",),
    "mergekit": (),
}
HEAVY = ("torch", "ray", "numba", "transformers", "botocore", "s3fs")


def imports_of(source: str) -> set[str]:
    """What `source` imports, by absolute name; `from raymerge.a import b` gives raymerge.a and raymerge.a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {node.module} - {None, "raymerge"}
    return names


def part_of(module: str) -> str:
    """The part of raymerge that holds `module`; "__init__" for names that the package itself defines."""
    part = [*module.split("."), ""][1]
    return part if part in DEPTH else "__init__"


def breaches(path: str, source: str) -> list[str]:
    """Imports of the file at `path` (relative to the root) that point up or aside, or that another folder owns."""
    own = part_of(path.removesuffix(".py").replace("/", "."))
    found = []
    for module in sorted(imports_of(source)):
        library = module.partition(".")[0]
        if library == "raymerge":
            target = part_of(module)
            named = any(own == part and f"{module}.".startswith(f"{noun}.") for part, noun in UPWARD)
            allowed = target == own or DEPTH[target] > DEPTH[own] or named
        else:
            allowed = library not in OWNERS or path.startswith(OWNERS[library])
        if not allowed:
            found.append(f"{path} imports {module}")
    return found


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("raymerge/planning/build.py", "from raymerge.recipe.nouns import Recipe", 0),
        ("raymerge/storage/s3.py", "import botocore.session", 0),
        ("raymerge/storage/local.py", "from raymerge.checkpoint.nouns import TensorRef", 0),
        ("raymerge/cli/app.py", "import raymerge", 0),
        ("raymerge/recipe/parse.py", "from raymerge.planning.nouns import Plan", 2),
        ("raymerge/merging/shard.py", "from raymerge.execute.base import Executor", 2),
        ("raymerge/storage/local.py", "from raymerge.checkpoint.header import read_header", 2),
        ("raymerge/planning/build.py", "def plan():\n    import yaml", 1),
        ("raymerge/execute/inline.py", "from ray import remote", 2),
        ("raymerge/submit/ray_jobs.py", "from ray.job_submission import JobSubmissionClient", 0),
        ("raymerge/submit/request.py", "import ray", 1),
        ("raymerge/compute/cache.py", "from raymerge import version", 0),
        ("raymerge/compute/cache.py", "from raymerge import load_recipe", 1),
        ("raymerge/errors.py", "import raymerge", 1),
    ],
)
def test_a_breach_is_seen(path: str, source: str, count: int) -> None:
    assert len(breaches(path, source)) == count


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("raymerge/**/*.py")))
def test_imports_point_down_and_libraries_have_owners(path: str) -> None:
    assert Path(path).parts[1].removesuffix(".py") in DEPTH, f"{path}: give it a layer in LAYERS"
    assert breaches(path, (ROOT / path).read_text(encoding="utf-8")) == []


def loaded_by(code: str) -> set[str]:
    """Names of the heavy libraries in sys.modules after a fresh interpreter ran `code`."""
    script = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(result.stderr.split())


def test_importing_raymerge_is_light() -> None:
    assert loaded_by("import raymerge") == set()


def test_planning_local_models_is_light(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    models = [{"model": str(write_llama(tmp_path / name, delta_of=base)), "parameters": {"weight": 1}} for name in "ab"]
    recipe = {"merge_method": "ties", "base_model": str(base), "models": models}
    assert (
        loaded_by(f"import raymerge\nassert raymerge.plan({recipe!r}, {str(tmp_path / 'out')!r}).tensor_count") == set()
    )


def test_functions_of_the_package_outlive_the_import_of_parts_of_the_same_name() -> None:
    parts = ", ".join(f"raymerge.{part}" for part in DEPTH if (ROOT / "raymerge" / part).is_dir())
    check = "assert all(callable(each) for each in (raymerge.merge, raymerge.plan, raymerge.load_recipe))"
    assert loaded_by(f"import raymerge\nimport {parts}, raymerge.merging.shard\n{check}") <= {"numba", "torch"}


def test_heavy_libraries_are_seen() -> None:
    assert loaded_by("import numba") == {"numba"}
