from __future__ import annotations

import dataclasses
import json
from contextlib import suppress

import pytest
from checkpoints import write_llama
from hypothesis import given
from hypothesis import strategies as st
from outputs import RECIPE, plan_folders, two_model_plan

from raymerge.errors import VerifyError
from raymerge.output.manifest import (
    InputRecord,
    Manifest,
    ShardRecord,
    State,
    completed,
    differences,
    parse_manifest,
    running_manifest,
    to_bytes,
)
from raymerge.planning.header import shard_header


def manifest(summary=None, digest="d", nbytes=10):
    shards = (ShardRecord(file_name="model.safetensors", nbytes=nbytes),)
    return Manifest(state=State.RUNNING, plan_digest=digest, shards=shards, inputs=(), summary=summary or {})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
records = st.builds(
    ShardRecord,
    file_name=st.from_regex(r"[a-z][a-z0-9.-]{0,9}", fullmatch=True),
    nbytes=st.integers(0, 2**60),
    crc32=st.none() | st.integers(0, 2**32 - 1),
)
inputs = st.builds(
    InputRecord,
    reference=texts,
    files=st.dictionaries(texts, texts, max_size=2),
    hub_id=st.none() | st.just("org/name"),
    commit=st.none() | st.just("abc"),
)
values = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=2))
manifests = st.builds(
    Manifest,
    state=st.sampled_from(State),
    plan_digest=texts,
    shards=st.lists(records, max_size=3).map(tuple),
    inputs=st.lists(inputs, max_size=2).map(tuple),
    summary=st.dictionaries(texts, values, max_size=3),
)


@given(manifests)
def test_what_is_written_is_read_back(manifest):
    text = to_bytes(manifest)
    assert parse_manifest(text, subject="m") == manifest
    assert to_bytes(parse_manifest(text, subject="m")) == text


BAD = {
    "empty": b"",
    "not JSON": b"{",
    "list": b"[]",
    "other JSON": b'{"a": 1}',
    "not UTF-8": b"\xff",
    "deep": b"[" * 100_000,
    "state": to_bytes(manifest()).replace(b"running", b"dancing"),
    "size": to_bytes(manifest()).replace(b": 10", b': "10"'),
    "negative size": to_bytes(manifest()).replace(b": 10", b": -10"),
    "path": to_bytes(manifest()).replace(b"model.safe", b"../model.safe"),
    "checksum": to_bytes(completed(manifest(), {"model.safetensors": 1})).replace(b"00000001", b"zzz"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_manifest_is_refused_by_name(case):
    with pytest.raises(VerifyError, match=r"OUT/raymerge.json: is not a manifest"):
        parse_manifest(BAD[case], subject="OUT/raymerge.json")


@given(st.data())
def test_no_mutation_raises_anything_else(data):
    text = bytearray(to_bytes(completed(manifest({"a": [1]}), {"model.safetensors": 7})))
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with suppress(VerifyError):
        parse_manifest(bytes(text), subject="m")


def test_another_format_is_refused_saying_which():
    text = to_bytes(manifest()).replace(b'"format": 1', b'"format": 2')
    with pytest.raises(VerifyError, match="has format 2, this version reads 1"):
        parse_manifest(text, subject="m")


def test_the_manifest_of_a_plan_names_files_of_the_right_size(tmp_path):
    plan = two_model_plan(tmp_path)
    found = running_manifest(plan)
    assert len(found.shards) > 1
    for record, shard in zip(found.shards, plan.shards, strict=True):
        assert record.nbytes == len(shard_header(shard)) + shard.tensor_bytes
    assert [each.reference for each in found.inputs] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert found.inputs[0].files == {"model.safetensors": plan.models[0].files[0].identity}
    done = completed(found, {shard.file_name: 1 for shard in plan.shards})
    assert done.state is State.COMPLETE
    assert parse_manifest(to_bytes(done), subject="m") == done


def test_only_what_the_plan_determines_is_in_it(tmp_path):
    plan = two_model_plan(tmp_path)
    again = two_model_plan(tmp_path)
    assert to_bytes(running_manifest(plan)) == to_bytes(running_manifest(again))


def test_no_credentials_are_kept(tmp_path):
    plan = two_model_plan(tmp_path)
    secret = "https://user:hunter2@host/model?sig=hunter2"
    models = (dataclasses.replace(plan.models[0], reference=secret), *plan.models[1:])
    summary = {"models": [{"model": secret}], "files": {secret: {"f": "1"}}, "note": "what?is this"}
    text = to_bytes(running_manifest(dataclasses.replace(plan, models=models, summary=summary)))
    assert b"hunter2" not in text
    assert b"what?is this" in text


def changed(**changes):
    old = {
        "models": [
            {"model": "base"},
            {"model": "a", "parameters": {"weight": 0.3, "density": [0.1, 1.0]}},
            {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, {"filter": None, "value": 1}]}},
        ],
        "random_seed": 0,
        "files": {"a": {"model.safetensors": "1-x"}},
    }
    return old, json.loads(json.dumps(old)) | changes


def test_a_changed_weight_is_named():
    old, new = changed()
    new["models"][1]["parameters"]["weight"] = 0.4
    assert differences(manifest(old), manifest(new, "e")) == ("models[1].parameters.weight 0.3 -> 0.4",)


def test_every_kind_of_change_is_named():
    old, new = changed(random_seed=7, dtype="bfloat16")
    new["models"][1]["parameters"]["density"] = [0.1, 0.9]
    new["models"][2]["parameters"]["weight"][0]["value"] = 0.5
    new["models"][2]["model"] = "c"
    new["models"].append({"model": "d"})
    new["files"]["a"]["model.safetensors"] = "1-y"
    assert set(differences(manifest(old), manifest(new, "e"))) == {
        "random_seed 0 -> 7",
        "dtype not set -> bfloat16",
        "models[1].parameters.density [0.1, 1.0] -> [0.1, 0.9]",
        "models[2].parameters.weight[0].value 0.3 -> 0.5",
        "models[2].model b -> c",
        "models[3] not set -> d",
        "a/model.safetensors has changed",
    }


def test_true_and_one_differ():
    assert differences(manifest({"n": True}), manifest({"n": 1}, "e")) == ("n true -> 1",)


def test_equal_plans_have_no_differences_and_unequal_ones_always_have():
    assert differences(manifest({"a": 1}), manifest({"a": 2})) == ()
    assert differences(manifest(nbytes=1), manifest(digest="e", nbytes=2)) == (
        "shard files: 1 with 1 bytes -> 1 with 2 bytes",
    )
    assert len(differences(manifest(), manifest(digest="e"))) == 1


def test_two_plans_of_one_folder_are_told_apart_by_what_the_user_wrote(tmp_path):
    plan = two_model_plan(tmp_path)
    recipe = RECIPE.format(a=tmp_path / "a", b=tmp_path / "b")
    old = running_manifest(plan)

    def changes(recipe, **options):
        return differences(old, running_manifest(plan_folders(recipe, **options)))

    assert changes(recipe.replace("0.4", "0.5")) == ("models[1].parameters.weight 0.4 -> 0.5",)
    assert changes("# a comment\n" + recipe) == ()
    assert changes(recipe, shard_bytes=30_000) == ("out_shard_size 20000 -> 30000",)
    write_llama(tmp_path / "b", layers=2, seed=1, intermediate=80)
    write_llama(tmp_path / "a", layers=2, seed=1, intermediate=80)
    assert changes(recipe) == (
        f"{tmp_path}/a/model.safetensors has changed",
        f"{tmp_path}/b/model.safetensors has changed",
    )
