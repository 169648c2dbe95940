"""Make the golden outputs: run the peer on every recipe and keep the results, one compressed file per group.

The peer is mergekit 0.1.5 in an environment of its own (`python -m venv PEER && PEER/bin/pip install mergekit==0.1.5`),
run through its command line alone:

    python tests/golden/make_expected.py PEER/bin/mergekit-yaml [--only SUBSTRING] [--missing] [--work FOLDER]

An array per case holds the output tensors, flattened, in name order (every `stride`-th element of each in the group
"wide"); "manifest" is JSON: per case the names, shapes and stored types, or the peer's last words where it failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.cases import Case, with_paths
from golden.inputs import SHAPES, read_safetensors, write_models
from golden.table import ALL_CASES, EXPECTED_FOLDER, file_of, stride_of

OPTIONS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")


def yaml_text(recipe: object) -> str:
    # JSON is YAML but for exponents: YAML 1.1 reads 1e-05 as a string and 1.0e-05 as a number
    return re.sub(r"(?<![\d.])(\d+)e-(\d+)", r"\1.0e-\2", json.dumps(recipe, indent=1))


def run_peer(executable: Path, cases: list[Case], work: Path) -> None:
    groups = {case.group for case in cases}
    paths = {group: write_models(work / "inputs" / group, SHAPES[group]) for group in groups}
    jobs = []
    for case in cases:
        folder = work / case.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml_text(with_paths(case.recipe, paths[case.group])))
        jobs.append(
            {
                "arguments": [str(folder / "recipe.yaml"), str(folder / "out"), *OPTIONS],
                "log": str(folder / "log"),
                "status": str(folder / "status"),
            }
        )
    (work / "jobs.json").write_text(json.dumps(jobs))
    interpreter = executable.parent / "python"
    runner = Path(__file__).with_name("run_peer.py")
    subprocess.run([interpreter, runner, executable, work / "jobs.json"], check=True)


def collect(case: Case, work: Path) -> tuple[dict[str, object], np.ndarray]:
    folder = work / case.name
    status = (folder / "status").read_text() if (folder / "status").exists() else "died"
    if status != "0":
        lines = [line for line in (folder / "log").read_text().splitlines() if line.strip()]
        return {"failed": lines[-1][:300] if lines else status}, np.zeros(0, np.float32)
    tensors, dtypes = read_safetensors(folder / "out")
    names = sorted(tensors)
    kept = [tensors[name].reshape(-1)[:: stride_of(case, tensors[name].size)] for name in names]
    entry = {
        "tensors": {name: [dtypes[name], *tensors[name].shape] for name in names},
        "layers": json.loads((folder / "out" / "config.json").read_text())["num_hidden_layers"],
    }
    return entry, np.concatenate(kept).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("executable", type=Path, help="the peer's mergekit-yaml")
    parser.add_argument("--only", default="", help="cases whose name contains this; the others keep their results")
    parser.add_argument("--missing", action="store_true", help="only cases that have no result yet")
    parser.add_argument("--work", type=Path, help="keep the peer's outputs here")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="golden-"))
    cases = [case for case in ALL_CASES if options.only in case.name]
    if options.missing:
        cases = [case for case in cases if not is_known(case)]
    run_peer(options.executable.absolute(), cases, work.absolute())
    EXPECTED_FOLDER.mkdir(exist_ok=True)
    for file in sorted({file_of(case) for case in cases}):
        write_file(file, [case for case in cases if file_of(case) == file], work)


def is_known(case: Case) -> bool:
    if not file_of(case).exists():
        return False
    with np.load(file_of(case)) as arrays:
        return case.name in json.loads(arrays["manifest"].tobytes())


def write_file(file: Path, cases: list[Case], work: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    manifest: dict[str, object] = {}
    if file.exists():
        with np.load(file) as known:
            manifest = json.loads(known["manifest"].tobytes())
            arrays = {name: known[name] for name in known.files if name != "manifest"}
    current = {case.name for case in ALL_CASES if file_of(case) == file}
    for case in cases:
        manifest[case.name], values = collect(case, work)
        arrays[case.name.replace("/", "__")] = values
        if "failed" in manifest[case.name]:
            print(f"{case.name}: {manifest[case.name]['failed']}")  # noqa: T201 - a script
    manifest = {name: entry for name, entry in sorted(manifest.items()) if name in current}
    arrays = {name: values for name, values in arrays.items() if name.replace("__", "/") in current}
    text = np.frombuffer(json.dumps(manifest, separators=(",", ":")).encode(), np.uint8)
    np.savez_compressed(file, manifest=text, **arrays)
    print(f"{file.name}: {len(manifest)} cases, {file.stat().st_size / 1e3:.0f} kB")  # noqa: T201


if __name__ == "__main__":
    main()
