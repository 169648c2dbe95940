"""Time raymerge, and a peer's executable where one is given, on the same recipes and files, in turn.

    python -m benchmarks.compare bench-data/1b --peer PEER/bin/mergekit-yaml --repeat 3

The folder is made by `make_checkpoints.py` (its 1b shape where it does not exist). Before every run, untimed, the same
program merges tiny models by the same method, outputs are removed, the disk is synced and the inputs are read, so that
the page cache is warm where memory allows, for programs, compiled kernels and inputs; every run is a fresh process.
Memory is the largest peak RSS of any one process of the run, mapped file pages included.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks.make_checkpoints import SHAPES, make_checkpoints

MARK = "RAYMERGE_BENCHMARK_RUN"  # in the environment of every process of a run, also of those that a run detaches
READ_BYTES = 16 << 20
PEER_OPTIONS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A program that takes CONFIG and OUT."""

    name: str
    command: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured merge; `failure` holds its last words where it made no output."""

    method: str
    contender: str
    seconds: float
    peak_bytes: int
    output_bytes: int = 0
    failure: str = ""


def recipes(folder: Path) -> dict[str, dict[str, object]]:
    """The benchmark's recipes: base and three fine-tunes (slerp: base and one) in bfloat16."""

    def model(name: str, **parameters: float) -> dict[str, object]:
        return {"model": str(folder / name), **({"parameters": parameters} if parameters else {})}

    def merge(method: str, *, each: dict[str, float], base: bool = True, **parameters: object) -> dict[str, object]:
        recipe: dict[str, object] = {"merge_method": method, "models": [model(name, **each) for name in "abc"]}
        if base:
            recipe["base_model"] = str(folder / "base")
        return recipe | ({"parameters": parameters} if parameters else {}) | {"dtype": "bfloat16"}

    half = {"weight": 0.4, "density": 0.5}
    layers = json.loads((folder / "base" / "config.json").read_text())["num_hidden_layers"]
    cuts = [{"sources": [{"model": str(folder / "a"), "layer_range": [0, layers * 3 // 4]}]}]
    cuts += [{"sources": [{"model": str(folder / "b"), "layer_range": [layers // 4, layers]}]}]
    return {
        "linear": merge("linear", each={"weight": 0.4}, base=False),
        "task_arithmetic": merge("task_arithmetic", each={"weight": 0.4}),
        "slerp": {
            "merge_method": "slerp",
            "models": [model("base"), model("a")],
            "base_model": str(folder / "base"),
            "parameters": {"t": [0, 0.5, 0.3, 0.7, 1]},
            "dtype": "bfloat16",
        },
        "ties": merge("ties", each=half),
        "dare_linear": merge("dare_linear", each=half),
        "dare_ties": merge("dare_ties", each=half),
        "passthrough": {"merge_method": "passthrough", "slices": cuts, "dtype": "bfloat16"},
        "della": merge("della", each={**half, "epsilon": 0.1}),
        "breadcrumbs_ties": merge("breadcrumbs_ties", each={**half, "gamma": 0.01}),
        "model_stock": merge("model_stock", each={}),
        "sce": merge("sce", each={}, select_topk=0.5),
    }


def tiny(config: Path) -> Path:
    """Where the same recipe for tiny models lies."""
    return config.parent / "tiny" / config.name


def contenders(options: argparse.Namespace) -> list[Contender]:
    own = (str(Path(sys.executable).with_name("raymerge")), "merge")  # as installed, whatever folder this runs in
    known = {
        "raymerge": Contender(name="raymerge", command=own, options=("--executor", "inline", "--quiet")),
        "raymerge-ray": Contender(name="raymerge-ray", command=own, options=("--executor", "ray", "--quiet")),
    }
    chosen = [known[name] for name in options.contenders.split(",") if name in known]
    if options.peer and options.peer.exists():
        chosen.append(Contender(name="peer", command=(str(options.peer),), options=PEER_OPTIONS))
    elif options.peer:
        print(f"skipped: no executable at {options.peer}")
    return chosen


class PeakWatch(threading.Thread):
    """Polls the peak RSS of every process of a run until stopped: `wait4` sees only children that were waited for."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._mark = f"{MARK}={mark}".encode()
        self._foreign: set[str] = set()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.1):
            for pid in self._processes():
                self.peak_bytes = max(self.peak_bytes, peak_of(pid))

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _processes(self) -> Iterator[str]:
        for pid in os.listdir("/proc"):
            if not pid.isdigit() or pid in self._foreign:
                continue
            try:
                belongs = self._mark in Path("/proc", pid, "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended, or belongs to someone else
            if belongs:
                yield pid
            else:
                self._foreign.add(pid)


def peak_of(pid: str) -> int:
    try:
        for line in Path("/proc", pid, "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended between two looks
    return 0


def warm_up(contender: Contender, config: Path, out: Path) -> None:
    """Have what a program loads in the page cache: one that ran long before may have been put out of it."""
    command = [*contender.command, str(config), str(out), *contender.options]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.rmtree(out, ignore_errors=True)


def measure(method: str, contender: Contender, config: Path, out: Path, inputs: list[Path]) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    warm_up(contender, tiny(config), out)
    os.sync()
    read(inputs)
    mark = uuid.uuid4().hex
    log = out.with_suffix(".log")
    watch = PeakWatch(mark)
    with log.open("wb") as sink:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*contender.command, str(config), str(out), *contender.options],
            env={**os.environ, MARK: mark},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    watch.stop()
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    failure = "" if process.returncode == 0 else f"exit {process.returncode}: {words[-1][:200] if words else ''}"
    output_bytes = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    shutil.rmtree(out, ignore_errors=True)
    log.unlink()
    return Run(
        method=method,
        contender=contender.name,
        seconds=seconds,
        peak_bytes=max(watch.peak_bytes, usage.ru_maxrss * 1024),
        output_bytes=output_bytes,
        failure=failure,
    )


def read(inputs: list[Path], sink: BinaryIO | None = None) -> None:
    """Read files whole, one after the other; the first goes to `sink`."""
    buffer = memoryview(bytearray(READ_BYTES))
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                if sink is not None:
                    sink.write(buffer[:count])
        sink = None


def read_and_write(inputs: list[Path], out: Path) -> tuple[float, float]:
    """Seconds on one thread to read the inputs and write a file as large as the first, and until it is on the disk."""
    read(inputs)
    os.sync()
    started = time.perf_counter()
    with out.open("wb", buffering=0) as sink:
        read(inputs, sink)
        copied = time.perf_counter() - started
        os.fsync(sink.fileno())
    synced = time.perf_counter() - started
    out.unlink()
    return copied, synced


def machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{model}, {os.cpu_count()} CPUs, {memory / 2**30:.0f} GiB, Linux {platform.release()}"


def commit() -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def median_of(runs: list[Run], method: str, contender: str) -> tuple[float, int] | None:
    chosen = [run for run in runs if run.method == method and run.contender == contender and not run.failure]
    if not chosen:
        return None
    return statistics.median(run.seconds for run in chosen), max(run.peak_bytes for run in chosen)


def table(runs: list[Run], methods: list[str], names: list[str]) -> str:
    """Markdown: seconds and peak memory of each contender, and how many times faster each is than the peer."""
    head = ["method"]
    for name in names:
        head += [f"{name} s", "peak GB"] + (["faster"] if "peer" in names and name != "peer" else [])
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for method in methods:
        row = [method]
        peer = median_of(runs, method, "peer")
        for name in names:
            found = median_of(runs, method, name)
            row += [f"{found[0]:.1f}", f"{found[1] / 1e9:.2f}"] if found else ["failed", ""]
            if "peer" in names and name != "peer":
                row.append(f"{peer[0] / found[0]:.1f}x" if found and peer else "")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-data/1b"))
    parser.add_argument("--methods", default="linear,task_arithmetic,slerp,ties,dare_linear,dare_ties,passthrough")
    parser.add_argument("--contenders", default="raymerge,raymerge-ray", help="of raymerge, raymerge-ray")
    parser.add_argument("--peer", type=Path, default=os.environ.get("PEER"), help="its mergekit-yaml; default $PEER")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="made where the folder has no checkpoints")
    parser.add_argument("--json", type=Path, help="also write every run here")
    options = parser.parse_args()
    options.peer = Path(options.peer) if options.peer else None
    return options


def main() -> None:
    options = parse()
    folder = options.folder.absolute()
    if not (folder / "made.json").exists():
        make_checkpoints(folder, SHAPES[options.shape], fine_tunes=3, seed=0, threads=os.cpu_count() or 1)
    inputs = [folder / name / "model.safetensors" for name in ("base", "a", "b", "c")]
    if not (folder / "tiny" / "made.json").exists():
        make_checkpoints(folder / "tiny", SHAPES["tiny"], fine_tunes=3, seed=0, threads=1)
    all_recipes, methods, chosen = recipes(folder), options.methods.split(","), contenders(options)
    tiny_recipes = recipes(folder / "tiny")
    bound, _ = read_and_write(inputs, folder / "copy")
    runs: list[Run] = []
    plain: list[tuple[float, float]] = []
    for method in methods:
        config = folder / f"{method}.yaml"
        config.write_text(json.dumps(all_recipes[method], indent=1))
        tiny(config).write_text(json.dumps(tiny_recipes[method], indent=1))
        for _ in range(options.repeat):
            if method == "linear":
                plain.append(read_and_write(inputs[1:], folder / "copy"))
            for contender in chosen:  # in turn, so that a change of the machine's load meets all of them
                run = measure(method, contender, config, folder / "out", inputs)
                runs.append(run)
                figures = f"{run.seconds:7.1f} s  {run.peak_bytes / 1e9:5.2f} GB  {run.failure}"
                print(f"  {method:16} {contender.name:13} {figures}", flush=True)
    size = inputs[0].stat().st_size / 1e9
    print(f"\n{dt.datetime.now(dt.timezone.utc):%Y-%m-%d %H:%M} UTC, commit {commit()}, {machine()}")
    print(f"4 checkpoints of {size:.2f} GB, median of {options.repeat}; reading all and writing one: {bound:.1f} s\n")
    print(table(runs, methods, [contender.name for contender in chosen]))
    if found := median_of(runs, "linear", "raymerge"):
        copied, synced = (statistics.median(column) for column in zip(*plain, strict=True))
        print(f"\nreading the inputs of linear and writing one file: {copied:.1f} s, {synced:.1f} with an fsync")
        print(f"raymerge, which syncs: {copied / found[0]:.2f} and {synced / found[0]:.2f} of that speed")
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    if any(run.failure for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
