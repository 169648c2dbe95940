"""verify and status: what their reports look like, and their exit codes on real outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from rich.console import Console
from typer.testing import CliRunner

import raymerge
from raymerge.cli.app import app
from raymerge.cli.screens.reports import status_screen, verify_screen
from raymerge.errors import Problem
from raymerge.output.manifest import Manifest, ShardRecord, State
from raymerge.output.status import StatusReport
from raymerge.output.verify import VerifyReport

RUNNER = CliRunner()
NOW = 1_750_000_000.0


def shown(renderable: Any) -> str:
    console = Console(width=100, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(renderable)
    return " ".join(capture.get().split())


def report(done: int, *, state: State = State.RUNNING, **facts: Any) -> StatusReport:
    shards = tuple(ShardRecord(file_name=f"model-{i:05d}-of-00083.safetensors", nbytes=10**9) for i in range(1, 84))
    manifest = Manifest(state=state, plan_digest="7f3a91c2" * 8, shards=shards, inputs=())
    return StatusReport(out="s3://lab/tie70", manifest=manifest, done=shards[:done], **facts)


def test_an_unfinished_output_says_how_far_and_how_fast() -> None:
    text = shown(status_screen(report(53, first_activity=NOW - 129, last_activity=NOW - 9), now=NOW))
    assert "unfinished 53 of 83 shards, 53.0 GB of 83.0 GB plan 7f3a91c2" in text
    assert "last shard 9.0 s ago, 26 a minute" in text
    assert "unknown whether a driver lives" in text
    assert "rerun" not in text


def test_a_quiet_one_says_to_run_again_and_loose_ends_are_named() -> None:
    loose = ("model-00041-of-00083.safetensors",)
    text = shown(status_screen(report(52, last_activity=NOW - 600, loose=loose, wrong=loose), now=NOW))
    assert "rerun the same command" in text
    assert "loose model-00041-of-00083.safetensors" in text
    assert "wrong model-00041-of-00083.safetensors" in text


def test_a_complete_one_names_the_next_command() -> None:
    text = shown(status_screen(report(83, state=State.COMPLETE), now=NOW))
    assert "complete 83 of 83 shards" in text
    assert "raymerge verify s3://lab/tie70" in text


def test_a_report_of_verify_lists_what_was_checked_skipped_and_wrong() -> None:
    problem = Problem(subject="/o/model.safetensors", message="has checksum 1, the manifest says 2", remedy="delete it")
    found = VerifyReport(
        out="/o",
        checked=("sizes",),
        skipped=("values",),
        problems=(problem,),
        shard_count=1,
        tensor_count=9,
        nbytes=10**9,
    )
    text = shown(verify_screen(found))
    assert text.startswith("1 problem /o 1 shard, 9 tensors, 1.0 GB checked sizes skipped values")
    assert text.endswith("/o/model.safetensors has checksum 1, the manifest says 2 -> delete it")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    base = write_llama(folder / "base")
    other = write_llama(folder / "other", delta_of=base)
    models = [{"model": str(each), "parameters": {"weight": 1}} for each in (base, other)]
    raymerge.merge(
        {"merge_method": "linear", "models": models}, folder / "out", executor="inline", out_shard_size="32KB"
    )
    return folder / "out"


def test_verify_passes_a_merge_and_fails_it_with_one_bit_changed(merged: Path) -> None:
    good = RUNNER.invoke(app, ["verify", str(merged), "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["ok"] is True
    shard = max(merged.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    bad = RUNNER.invoke(app, ["verify", str(merged)], env={"COLUMNS": "200"})
    bad_values = json.loads(RUNNER.invoke(app, ["verify", str(merged), "--json"]).stdout)
    content[-1] ^= 1
    shard.write_bytes(content)
    assert bad.exit_code == 1
    assert bad_values["ok"] is False
    assert "checksum" in bad.stdout
    assert shard.name in bad.stdout


def test_verify_of_nothing_is_an_error_without_traceback(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["verify", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_status_of_a_merge_and_of_nothing(merged: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["status", str(merged), "--json"])
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert (values["state"], values["done_count"], values["missing"]) == ("complete", values["shard_count"], [])
    nothing = RUNNER.invoke(app, ["status", str(tmp_path)])
    assert nothing.exit_code == 1
    assert "no merge has begun" in nothing.stdout
