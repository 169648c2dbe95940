"""Any damage to a finished output is found by name, and status reads the store alone."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from checkpoints import write_llama, write_safetensors
from outputs import two_model_plan, write_output

import raymerge.output.verify as verify_module
from raymerge.errors import NotFoundError, VerifyError
from raymerge.output.status import status
from raymerge.output.verify import verify

INDEX = "model.safetensors.index.json"


@pytest.fixture
def plan(tmp_path):
    return two_model_plan(tmp_path, shard_bytes=12_000)


@pytest.fixture
def out(plan, tmp_path):
    return write_output(plan, tmp_path / "out")


def problems(out, **options):
    return "\n".join(str(problem) for problem in verify(str(out), **options).problems)


def test_a_finished_output_has_no_problem(plan, out):
    report = verify(str(out))
    assert report.ok, report.problems
    assert report.shard_count == len(plan.shards) > 2
    assert report.tensor_count == plan.tensor_count
    assert report.nbytes == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert f"checksums of {len(plan.shards)} shards" in report.checked
    assert report.skipped == ()


def test_a_single_file_output_has_no_problem(tmp_path):
    assert verify(str(write_output(two_model_plan(tmp_path, shard_bytes=10**9), tmp_path / "out"))).ok


def flip(path, offset, bits=1):
    content = bytearray(path.read_bytes())
    content[offset] ^= bits
    path.write_bytes(content)


def second(out):
    return sorted(out.glob("*.safetensors"))[1]


def test_one_flipped_bit_in_any_shard_is_found(out):
    for path in sorted(out.glob("*.safetensors")):
        flip(path, -1)
        assert f"{path.name}: has checksum" in problems(out)
        flip(path, -1)
    assert verify(str(out)).ok


DAMAGES = {
    "missing shard": (lambda out: second(out).unlink(), "is missing"),
    "truncated shard": (lambda out: second(out).write_bytes(second(out).read_bytes()[:-1]), "ends at byte"),
    "longer shard": (lambda out: second(out).write_bytes(second(out).read_bytes() + b"x"), "after its last tensor"),
    "empty shard": (lambda out: second(out).write_bytes(b""), "too few for a safetensors header"),
    "no index": (lambda out: (out / INDEX).unlink(), f"{INDEX}: is missing; without it loaders find no model"),
    "index names another file": (
        lambda out: (out / INDEX).write_text((out / INDEX).read_text().replace("model-00002", "model-00009", 1)),
        "not in the folder",
    ),
    "index lacks a tensor": (lambda out: edit(out / INDEX, lambda d: d["weight_map"].popitem()), "not in the index"),
    "config cut": (lambda out: (out / "config.json").write_text("{"), "config.json: is not valid JSON"),
    "config a list": (lambda out: (out / "config.json").write_text("[]"), "expected a JSON object"),
    "config gone": (lambda out: (out / "config.json").unlink(), "has no config.json"),
    "tokenizer cut": (lambda out: (out / "tokenizer.json").write_text("{"), "tokenizer.json: is not valid JSON"),
    "manifest cut": (lambda out: (out / "raymerge.json").write_text("{"), "is not a manifest"),
    "foreign weights": (
        lambda out: write_safetensors(out / "extra.safetensors", {"x": (np.ones(2), "F32")}),
        "extra.safetensors: is not of this merge",
    ),
    "other plan": (
        lambda out: flip(second(out), second(out).read_bytes().index(b'raymerge_plan":"') + 16),
        "is of plan",
    ),
}


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_found_by_name(out, case):
    damage, expected = DAMAGES[case]
    damage(out)
    assert expected in problems(out)


def test_an_unfinished_output_is_a_problem_with_its_remedy(plan, tmp_path):
    found = problems(write_output(plan, tmp_path / "half", complete=False, shards=2))
    assert "says that the merge is unfinished; run the same merge command again" in found


@pytest.mark.parametrize(
    ("code", "bad"), [("BF16", np.inf), ("F16", -np.inf), ("F32", np.nan), ("F64", np.inf), ("F16", np.nan)]
)
def test_values_that_are_not_finite_are_counted_by_tensor(tmp_path, code, bad, monkeypatch):
    monkeypatch.setattr(verify_module, "_CHUNK_BYTES", 64)
    values = np.linspace(-1, 1, 1000)
    values[[3, 500, 999]] = bad
    (tmp_path / "config.json").write_text("{}")
    integers = np.full(4, -1)
    write_safetensors(
        tmp_path / "model.safetensors", {"good": (np.ones(9), code), "bad": (values, code), "i": (integers, "I64")}
    )
    report = verify(str(tmp_path))
    assert [problem.message for problem in report.problems] == [
        "tensor 'bad' holds 3 of 1000 values that are not finite"
    ]
    assert "values of type I64" in report.skipped


def test_a_folder_of_somebody_else_is_checked_as_far_as_it_goes(tmp_path):
    report = verify(str(write_llama(tmp_path, layers=1)))
    assert report.ok, report.problems
    assert any("no raymerge.json" in each for each in report.skipped)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(NotFoundError):
        verify(str(tmp_path / "nowhere"))


def test_a_remote_output_is_read_in_full_only_when_asked(plan, out, monkeypatch):
    monkeypatch.setattr(verify_module, "is_local", lambda url: False)
    flip(second(out), -1)
    report = verify(str(out))
    assert report.ok
    assert any("--full" in each and "checksums" in each for each in report.skipped)
    assert any("--full" in each and "values" in each for each in report.skipped)
    assert "has checksum" in problems(out, full=True)


def test_status_of_nothing(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        report = status(str(folder))
        assert report.manifest is None
        assert not report.is_complete


def test_status_of_half_an_output_names_what_is_done_wrong_loose_and_missing(plan, tmp_path):
    out = write_output(plan, tmp_path / "half", complete=False, shards=3)
    flip(second(out), second(out).read_bytes().index(b'raymerge_plan":"') + 16)
    (out / f".{plan.shards[3].file_name}.host.123.0a1b2c3d.partial").write_bytes(b"x" * 10)
    report = status(str(out))
    assert [shard.file_name for shard in report.done] == [plan.shards[0].file_name, plan.shards[2].file_name]
    assert report.wrong == (plan.shards[1].file_name,)
    assert report.loose == (plan.shards[3].file_name,)
    assert report.missing == tuple(
        shard.file_name for shard in plan.shards if shard not in (plan.shards[0], plan.shards[2])
    )
    assert report.done_bytes == sum((out / shard.file_name).stat().st_size for shard in report.done)
    assert time.time() - 60 < report.first_activity <= report.last_activity < time.time() + 1
    assert not report.is_complete


def test_another_shard_under_a_shards_name_is_not_done(plan, out):
    second(out).write_bytes((out / plan.shards[0].file_name).read_bytes())
    assert status(str(out)).wrong == (plan.shards[1].file_name,)
    assert "the manifest says" in problems(out)


def test_status_of_a_finished_output(plan, out):
    report = status(str(out))
    assert report.is_complete
    assert report.missing == report.wrong == report.loose == ()
    second(out).unlink()
    assert not status(str(out)).is_complete


def test_status_of_a_damaged_manifest_is_an_error(out):
    (out / "raymerge.json").write_text("[]")
    with pytest.raises(VerifyError, match="is not a manifest"):
        status(str(out))
