"""A method in a file of its own: declared once, it is parsed, planned, explained, run and resumed like any other."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_tensors, to_bfloat16, write_llama
from merges import folder_digest
from typer.testing import CliRunner

import raymerge
from raymerge.cli.app import app
from raymerge.errors import ExecutionError, PlanError, UsageError
from raymerge.events import Event, RunStarted
from raymerge.merging.memory import merged_tensors
from raymerge.methods import all_methods, declaration, extension, load_methods

ROOT = Path(__file__).resolve().parents[2]

MEAN = """\
import raymerge


@raymerge.merge_method("my_mean", summary="mean", formula="mean", source="a test",
                       parameters=(raymerge.Parameter(name="factor", kind=float, default=1.0, help="scale"),))
def my_mean(inputs):
    share = inputs.shared["factor"] / inputs.count
    return lambda block: block.operations.weighted_sum([share] * inputs.count, block.x)
"""


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    all_methods()
    methods, files = dict(declaration._REGISTRY), dict(extension._files)
    yield
    declaration._REGISTRY.clear()
    declaration._REGISTRY.update(methods)
    for module in extension._files.keys() - files.keys():
        sys.modules.pop(module)
        del extension._files[module]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_llama(root / "base")
    for seed, name in ((1, "a"), (2, "b")):
        write_llama(root / name, seed=seed, delta_of=root / "base")
    return root


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """The code block of the documentation, as it stands there."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) < 40
    path = tmp_path / "my_method.py"
    path.write_text(code)
    return path


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def recipe(models: Path, method: str = "my_mean", **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "models": [{"model": str(models / name)} for name in "ab"],
        "parameters": parameters,
    }


def documented_recipe(models: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "capped_average",
        "base_model": str(models / "base"),
        "models": [
            {"model": str(models / "a"), "parameters": {"weight": 0.6}},
            {"model": str(models / "b"), "parameters": {"weight": [0.2, 0.4]}},
        ],
        "parameters": parameters,
        "dtype": "float32",
    }


def test_the_documented_method_computes_its_formula(models: Path, documented: Path) -> None:
    stored = {name: read_tensors(models / name) for name in ("base", "a", "b")}
    merged = dict(raymerge.tensors(documented_recipe(models, cap=0.05), methods=(str(documented),)))
    capped = 0
    for name, tensor in merged.items():
        base, a, b = (stored[model][name].astype(np.float64) for model in ("base", "a", "b"))
        layer = re.search(r"layers\.(\d)", name)
        weight = 0.2 + 0.2 * int(layer[1]) / 3 if layer else 0.2
        mean = (0.6 * (a - base) + weight * (b - base)) / (0.6 + weight)
        longest, length = 0.05 * np.linalg.norm(base), np.linalg.norm(mean)
        capped += bool(length > longest)
        exact = base + mean * min(1.0, longest / length)
        np.testing.assert_allclose(tensor.numpy(), exact, rtol=1e-6, atol=1e-9)
    assert 0 < capped < len(merged)


def test_the_documented_method_runs_inline_and_on_a_private_ray_without_its_file(
    models: Path, documented: Path, tmp_path: Path
) -> None:
    config, options = documented_recipe(models), {"methods": (str(documented),), "out_shard_size": "50KB"}
    raymerge.merge(config, tmp_path / "inline", executor="inline", **options)

    def remove_file(event: Event) -> None:
        if isinstance(event, RunStarted):
            documented.unlink()

    result = raymerge.merge(config, tmp_path / "ray", on_event=remove_file, **options)
    assert result.shard_count > 1
    assert not documented.exists()
    assert folder_digest(tmp_path / "ray") == folder_digest(tmp_path / "inline")


def test_the_documented_method_obeys_the_laws_of_the_registry(documented: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/test_registry.py"]
    command += ["--methods", str(documented), "-k", "capped_average"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 15


def test_the_command_line_takes_files_of_methods(models: Path, documented: Path, tmp_path: Path) -> None:
    run = CliRunner()
    mine = write(tmp_path, MEAN)
    both = ["--methods", str(documented), "--methods", mine]
    table = run.invoke(app, ["methods", *both])
    assert table.exit_code == 0
    assert "capped_average" in table.stdout
    assert "my_mean" in table.stdout
    page = run.invoke(app, ["methods", "capped_average", "--methods", str(documented)])
    assert "longest change, as a share of the base's norm (at least 0)" in " ".join(page.stdout.split())
    assert str(documented) in page.stdout.replace("\n", "")
    text = run.invoke(app, ["methods", "capped_average", "--example", "--methods", str(documented)]).stdout
    for model, stands_for in (
        ("Qwen/Qwen2.5-0.5B-Instruct", models / "a"),
        ("Qwen/Qwen2.5-Coder-0.5B", models / "b"),
        ("Qwen/Qwen2.5-0.5B", models / "base"),
    ):
        text = text.replace(f": {model}\n", f": {stands_for}\n")
    config = tmp_path / "config.yaml"
    config.write_text(text)
    plan = run.invoke(app, ["plan", str(config), *both])
    assert plan.exit_code == 0, plan.output
    assert "capped_average, 3 models" in plan.stdout
    merged = run.invoke(app, ["merge", str(config), str(tmp_path / "out"), "--executor", "inline", *both])
    assert merged.exit_code == 0, merged.output
    assert "`capped_average`: add the models' mean change" in (tmp_path / "out" / "README.md").read_text()


def test_declared_parameters_are_checked_with_everything_else(models: Path, documented: Path) -> None:
    config = documented_recipe(models, cap=-1, capp=2)
    del config["models"][0]["parameters"]
    with pytest.raises(PlanError) as caught:
        raymerge.plan(config, methods=(str(documented),))
    told = str(caught.value)
    assert "cap: found -1, expected at least 0" in told
    assert "no method has a parameter 'capp'; capped_average takes weight, cap" in told
    assert "weight of" in told
    assert "required and not set" in told


def test_a_check_of_values_is_asked_while_planning(models: Path, tmp_path: Path) -> None:
    text = MEAN.replace(
        'source="a test",', 'source="a test", check=lambda shared, each: "too large" if shared["factor"] > 2 else None,'
    )
    mine = write(tmp_path, text)
    raymerge.plan(recipe(models, factor=2), methods=(mine,))
    with pytest.raises(PlanError, match=r"too large \(and \d+ more tensors\)"):
        raymerge.plan(recipe(models, factor=3), methods=(mine,))


def test_a_share_of_ones_own_is_warned_of_beyond_its_ends(models: Path, tmp_path: Path) -> None:
    mine = write(tmp_path, MEAN.replace('help="scale"', 'is_share=True, help="scale"'))
    assert not raymerge.plan(recipe(models, factor=1), methods=(mine,)).warnings
    (warning,) = raymerge.plan(recipe(models, factor=40), methods=(mine,)).warnings
    assert str(warning.subject) == "factor"
    assert warning.remedy == "write 0.4 for 40%"


def test_another_formula_never_continues_an_output(models: Path, tmp_path: Path) -> None:
    mine = write(tmp_path, MEAN)
    first = raymerge.plan(recipe(models), methods=(mine,))
    raymerge.merge(recipe(models), tmp_path / "out", executor="inline", methods=(mine,))
    write(tmp_path, MEAN.replace("/ inputs.count", "/ (2 * inputs.count)"))
    assert raymerge.plan(recipe(models), methods=(mine,)).digest != first.digest
    with pytest.raises(PlanError, match="merge_method_sha256"):
        raymerge.merge(recipe(models), tmp_path / "out", executor="inline", methods=(mine,))
    raymerge.merge(recipe(models), tmp_path / "half", executor="inline", methods=(mine,))
    whole, half = (read_tensors(tmp_path / name)["model.norm.weight"] for name in ("out", "half"))
    np.testing.assert_array_equal(half, whole / 2)
    write(tmp_path, MEAN)
    moved = write(tmp_path, MEAN, "moved.py")
    assert raymerge.plan(recipe(models), methods=(mine,)).digest == first.digest
    declaration.forget_module(declaration._REGISTRY["my_mean"].merge.__module__)
    assert raymerge.plan(recipe(models), methods=(moved,)).digest == first.digest, "the place of the file is no code"


def test_code_that_differs_from_the_plan_is_not_run(models: Path, tmp_path: Path) -> None:
    plan = raymerge.plan(recipe(models), methods=(write(tmp_path, MEAN),))
    load_methods([write(tmp_path, MEAN.replace("/ inputs.count", "/ 3"))])
    with pytest.raises(ExecutionError, match="the plan was made with other code"):
        list(merged_tensors(plan))


MISTAKES = {
    "a colon too few": ("import raymerge\ndef broken(inputs)\n    pass\n", 2, "not valid Python"),
    "nothing declared": ("import raymerge\n", None, "declares no merge method"),
    "no such module": ("import raymerge\nimport not_installed_anywhere\n", 2, "installed on every node"),
    "an error of its own": ("import raymerge\n\n\nnumber = 1 / 0\n", 4, "ZeroDivisionError"),
    "it exits": ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
    "a built-in name": (MEAN.replace('"my_mean"', '"ties"'), 4, "raymerge itself"),
    "a reserved name": (MEAN.replace('"my_mean"', '"copy"'), 4, "copy is taken"),
    "an unknown keyword": (MEAN.replace('source="a test"', 'source="a test", pases=1'), 4, "pases"),
    "no formula": (MEAN.replace(' formula="mean",', ""), 4, "formula"),
    "parameters that are none": (MEAN.replace('help="scale"),)', 'help="scale"))'), 4, "(Parameter(...),)"),
    "a default of another kind": (MEAN.replace("default=1.0", 'default="1"'), 4, "expected a float"),
    "a share that is no float": (
        MEAN.replace("kind=float, default=1.0", "kind=int, default=1, is_share=True"),
        4,
        "as a share, expected float",
    ),
    "an example of nothing": (MEAN.replace('source="a test"', 'source="", example={"t": 1}'), 4, "does not declare"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file_is_told_by_file_and_line(models: Path, tmp_path: Path, mistake: str) -> None:
    text, line, finding = MISTAKES[mistake]
    mine = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        raymerge.plan(recipe(models), methods=(mine,))
    (problem,) = caught.value.problems
    told = f"{problem.message} {problem.remedy}"
    assert finding in told
    # Decorators are told by their own line or the definition's, as the Python version has it.
    lines = [None] if line is None else [line, line + 1, line + 2] if "raymerge.merge_method" in text else [line]
    assert problem.subject in [mine if each is None else f"{mine}, line {each}" for each in lines]
    assert not any(each.startswith("raymerge_method_mine") for each in sys.modules)
    assert list(all_methods()) == list(all_methods())
    assert "my_mean" not in all_methods()


def test_files_that_cannot_be_read_are_told(models: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "large.py").write_text("#" * 200_000)
    for name, finding in (
        ("missing.py", "no such file"),
        (".", "cannot be read"),
        ("latin.py", "expected UTF-8"),
        ("large.py", "may have 131072"),
    ):
        with pytest.raises(UsageError, match=finding):
            raymerge.plan(recipe(models), methods=(str(tmp_path / name),))
    with pytest.raises(UsageError, match=r"write \('mine.py',\)"):
        raymerge.plan(recipe(models), methods="mine.py")


def test_two_files_cannot_share_a_name(models: Path, tmp_path: Path) -> None:
    first, second = write(tmp_path, MEAN, "one.py"), write(tmp_path, MEAN + "\n", "two.py")
    with pytest.raises(UsageError, match=r"two\.py, line .*my_mean.* is defined twice: in .*one\.py and .*two\.py"):
        raymerge.plan(recipe(models), methods=(first, second))


def test_the_command_line_shows_a_mistake_without_a_traceback(models: Path, tmp_path: Path) -> None:
    mine = write(tmp_path, MISTAKES["an error of its own"][0])
    for arguments in (["methods"], ["plan", str(tmp_path)], ["merge", str(tmp_path), str(tmp_path / "out")]):
        run = [sys.executable, "-m", "raymerge", *arguments, "--methods", mine]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stderr
        assert f"{mine}, line 4" in done.stderr.replace("\n", "")
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
    done = subprocess.run([*run, "-v"], capture_output=True, text=True, timeout=60, check=False)
    assert "number = 1 / 0" in done.stderr


def test_an_error_of_the_formula_is_told_by_tensor_file_and_line(models: Path, tmp_path: Path) -> None:
    failing = write(tmp_path, MEAN.replace("[share] * inputs.count", "[share] * inputs.number"))
    with pytest.raises(ExecutionError) as caught:
        raymerge.merge(recipe(models), tmp_path / "out", executor="inline", methods=(failing,))
    (problem,) = caught.value.problems
    assert problem.subject == f"{failing}, line 8"
    assert re.search(r"my_mean failed on \S+: AttributeError: .*number", problem.message)
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("result", "finding"),
    [
        ("block.x[0][:-1]", "of shape"),
        ("block.x[0].astype('f2')", "float16"),
        ("block.x[0].tolist()", "came out as list"),
        ("None", "came out as NoneType"),
        ("block.x[0].reshape(1, -1)", "of shape (1, "),
    ],
)
def test_a_result_of_another_form_is_refused(models: Path, tmp_path: Path, result: str, finding: str) -> None:
    text = MEAN.replace("block.operations.weighted_sum([share] * inputs.count, block.x)", result)
    with pytest.raises(ExecutionError, match=re.escape(finding)):
        list(raymerge.tensors(recipe(models), methods=(write(tmp_path, text),)))


def test_a_method_without_a_file_is_refused_before_work(models: Path, tmp_path: Path) -> None:
    """No resume could tell whether its code is still the same."""
    code = f"{MEAN}\nraymerge.merge({recipe(models)!r}, {str(tmp_path / 'out')!r}, executor='inline')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "my_mean is defined in __main__, not in a file" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_script_that_declares_a_method_merges_inline_and_names_itself_for_ray(models: Path, tmp_path: Path) -> None:
    script = f"""{MEAN}
if __name__ == "__main__":
    options = dict(executor="inline")
    raymerge.merge({recipe(models)!r}, {str(tmp_path / "inline")!r}, **options)
    raymerge.merge({recipe(models)!r}, {str(tmp_path / "named")!r}, methods=(__file__,), **options)
    from raymerge.running import method_origins
    print(method_origins(raymerge.plan({recipe(models)!r}))["my_mean"].source is not None)
"""
    done = subprocess.run(
        [sys.executable, write(tmp_path, script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True\n", done.stderr
    assert folder_digest(tmp_path / "inline") == folder_digest(tmp_path / "named")


def test_bfloat16_results_are_rounded_once(models: Path, tmp_path: Path) -> None:
    """float64 results too: a method may return more than the blocks hold."""
    text = MEAN.replace(
        "block.operations.weighted_sum([share] * inputs.count, block.x)", "sum(x.astype('f8') for x in block.x) / 3"
    )
    stored = [read_tensors(models / name) for name in "ab"]
    for name, tensor in raymerge.tensors(recipe(models), methods=(write(tmp_path, text),)):
        exact = (stored[0][name].astype(np.float64) + stored[1][name]) / 3
        np.testing.assert_array_equal(to_bfloat16(tensor.float().numpy()), to_bfloat16(exact.astype(np.float32)))
