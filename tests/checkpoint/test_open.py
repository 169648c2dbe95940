"""Opening: every layout, every kind of damage, and the law that no weight byte is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import read_tensors, write_deepseek, write_llama, write_safetensors

import raymerge.checkpoint.open as open_module
from raymerge.checkpoint.header import header_nbytes
from raymerge.checkpoint.open import open_checkpoint
from raymerge.errors import ChangedError, CheckpointError
from raymerge.storage import store_for
from raymerge.storage.base import Store

INDEX = "model.safetensors.index.json"


def opened(folder, **options):
    return open_checkpoint(str(folder), **{"revision": None, "display": "MODEL", "cwd": "/"} | options)


@pytest.fixture
def sharded(tmp_path):
    return write_llama(tmp_path / "m", layers=2, shard_bytes=20_000)


def edit_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_every_tensor_lies_where_its_ref_says(tmp_path, shard_bytes):
    folder = write_llama(tmp_path, shard_bytes=shard_bytes, dtype="float32")
    checkpoint = opened(folder)
    expected = read_tensors(folder)
    assert list(checkpoint.tensors) == list(expected)
    for name, ref in checkpoint.tensors.items():
        buffer = bytearray(ref.spec.nbytes)
        store_for(ref.file.url).read_into(ref.file.url, buffer, offset=ref.offset, version=ref.file.version)
        assert np.array_equal(np.frombuffer(buffer, np.float32).reshape(ref.spec.shape), expected[name])
    assert checkpoint.config["num_hidden_layers"] == 4
    assert checkpoint.nbytes == sum(array.nbytes for array in expected.values())
    assert checkpoint.side_files == (
        "config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    )  # fmt: skip
    assert checkpoint.notes == ()


class CountingStore(Store):
    """Records the ranges that are read through it; ranged reads are all that can touch weight files."""

    def __init__(self, inner):
        self.inner = inner
        self.ranges = []

    def read_into(self, url, buffer, *, offset, version):
        self.ranges.append((url, offset, offset + len(buffer)))
        self.inner.read_into(url, buffer, offset=offset, version=version)

    def read(self, url, *, max_bytes):
        assert not url.endswith(".safetensors")
        return self.inner.read(url, max_bytes=max_bytes)

    def list(self, url):
        return self.inner.list(url)

    def info(self, url):
        return self.inner.info(url)

    create = delete = probe = clean = None


CountingStore.__abstractmethods__ = frozenset()


def test_no_weight_byte_of_a_local_file_is_read(sharded, monkeypatch):
    store = CountingStore(store_for(str(sharded)))
    monkeypatch.setattr(open_module, "store_for", lambda url: store)
    checkpoint = opened(sharded)
    assert {url for url, _, _ in store.ranges} == {file.url for file in checkpoint.files}
    for url, _, end in store.ranges:
        content = Path(url).read_bytes()
        assert end <= header_nbytes(content[:8], len(content), url)


def test_a_remote_header_takes_one_read_or_two_and_no_byte_beyond_the_guess(sharded, monkeypatch):
    store = CountingStore(store_for(str(sharded)))
    monkeypatch.setattr(open_module, "store_for", lambda url: store)
    monkeypatch.setattr(open_module, "is_local", lambda url: False)
    files = len(opened(sharded).files)
    assert len(store.ranges) == files
    store.ranges.clear()
    monkeypatch.setattr(open_module, "_REMOTE_GUESS_BYTES", 100)
    opened(sharded)
    assert len(store.ranges) == 2 * files


def test_two_models_never_share_an_identity(tmp_path):
    """Same shapes, same size, same header, and even the same time of change, as archives and images give it."""
    first, second = write_llama(tmp_path / "a", layers=1, seed=1), write_llama(tmp_path / "b", layers=1, seed=2)
    for folder in (first, second):
        os.utime(folder / "model.safetensors", (1, 1))
    before = opened(first).files[0]
    assert opened(second).files[0].identity != before.identity
    assert opened(first).files[0].identity == before.identity
    os.utime(first / "model.safetensors", (2, 2))
    after = opened(first).files[0]
    assert after.identity != before.identity
    assert after.version != before.version


def test_a_file_that_changes_between_listing_and_reading_is_an_error(sharded, monkeypatch):
    store = CountingStore(store_for(str(sharded)))
    listing = store.list(str(sharded))
    os.utime(sharded / "model-00001-of-00003.safetensors", (1, 1))
    monkeypatch.setattr(store, "list", lambda url: listing)
    monkeypatch.setattr(open_module, "store_for", lambda url: store)
    with pytest.raises(ChangedError):
        opened(sharded)


def test_several_files_without_index_are_one_model(sharded):
    expected = list(opened(sharded).tensors)
    (sharded / INDEX).unlink()
    assert list(opened(sharded).tensors) == expected
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00003\.safetensors, and has no index"):
        opened(sharded)


def test_files_of_any_name_are_taken_where_their_names_are_disjoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(tmp_path / "b.safetensors", {"y": (np.ones(3), "F32")})
    write_safetensors(tmp_path / "a.safetensors", {"z": (np.ones(3), "F32"), "x": (np.ones(3), "F16")})
    assert list(opened(tmp_path).tensors) == ["z", "x", "y"]
    write_safetensors(tmp_path / "c.safetensors", {"x": (np.ones(3), "F32")})
    with pytest.raises(CheckpointError, match=r"MODEL/c.safetensors: tensor 'x' is in a.safetensors too"):
        opened(tmp_path)


def test_a_single_file_wins_over_an_index_of_others_and_the_note_says_so(sharded):
    write_safetensors(sharded / "model.safetensors", {"x": (np.ones(3), "F32")})
    checkpoint = opened(sharded)
    assert list(checkpoint.tensors) == ["x"]
    assert "model.safetensors is used" in checkpoint.notes[0]


def test_files_that_the_index_does_not_list_are_noted(sharded):
    write_safetensors(sharded / "consolidated.safetensors", {"x": (np.ones(3), "F32")})
    checkpoint = opened(sharded)
    assert "x" not in checkpoint.tensors
    assert checkpoint.notes == ("not read, since not in the index: consolidated.safetensors",)


def test_tensors_that_the_index_forgot_are_kept_and_noted(sharded):
    edit_index(sharded, lambda index: index["weight_map"].pop("lm_head.weight"))
    checkpoint = opened(sharded)
    assert "lm_head.weight" in checkpoint.tensors
    assert checkpoint.notes == ("lm_head.weight in the weight files but not in the index: used like the others",)


def move(tensor, file_name):
    return lambda index: index["weight_map"].update({tensor: file_name})


INDEX_FAULTS = {
    "no map": (lambda index: index.pop("weight_map"), "has no weight_map"),
    "list": (lambda index: index.update(weight_map=[]), "has no weight_map"),
    "empty": (lambda index: index.update(weight_map={}), "has no weight_map"),
    "number": (move("lm_head.weight", 3), "'lm_head.weight' lies in 3, which is no file name"),
    "absent file": (move("lm_head.weight", "model-9.safetensors"), "names model-9.safetensors, which is not in the f"),
    "absolute": (move("lm_head.weight", "/etc/x.safetensors"), "'lm_head.weight' lies in '/etc/x.safetensors'"),
    "parent": (move("lm_head.weight", "../x.safetensors"), "outside the folder"),
    "backslash": (move("lm_head.weight", "..\\x.safetensors"), "outside the folder"),
    "scheme": (move("lm_head.weight", "s3://b/x.safetensors"), "outside the folder"),
    "sub-folder": (move("lm_head.weight", "sub/x.safetensors"), "in another folder"),
    "pickle": (move("lm_head.weight", "pytorch_model.bin"), "no safetensors file"),
    "wrong file": (
        move("lm_head.weight", "model-00001-of-00003.safetensors"),
        "'lm_head.weight' is listed in model-00001-of-00003.safetensors, which has it not; model-00003-of-00003",
    ),
    "no such tensor": (
        move("ghost", "model-00001-of-00003.safetensors"),
        "'ghost' is listed in model-00001-of-00003.safetensors, which has it not",
    ),
}


@pytest.mark.parametrize("case", INDEX_FAULTS)
def test_a_wrong_index_is_refused_naming_tensor_and_file(sharded, case):
    change, expected = INDEX_FAULTS[case]
    edit_index(sharded, change)
    with pytest.raises(CheckpointError) as caught:
        opened(sharded)
    assert expected in str(caught.value)
    assert f"MODEL/{INDEX}" in str(caught.value)


def test_every_misplaced_file_is_reported_at_once(sharded):
    edit_index(sharded, move("ghost", "model-00001-of-00003.safetensors"))
    edit_index(sharded, move("phantom", "model-00002-of-00003.safetensors"))
    with pytest.raises(CheckpointError) as caught:
        opened(sharded)
    assert len(caught.value.problems) == 2


JSON_FAULTS = {"cut": b'{"a": ', "list": b"[]", "text": b"\xff{}", "deep": b'{"a":' * 100_000, "empty": b""}


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("case", JSON_FAULTS)
def test_json_that_is_no_object_is_refused_naming_the_file(sharded, name, case):
    (sharded / name).write_bytes(JSON_FAULTS[case])
    with pytest.raises(CheckpointError, match=f"MODEL/{name}: (is not valid JSON|holds a list)"):
        opened(sharded)


def test_infinity_in_a_config_is_taken(tmp_path):
    folder = write_llama(tmp_path, layers=1, config={"time_step_limit": [0.0, float("inf")]})
    assert opened(folder).config["time_step_limit"][1] == float("inf")


def test_a_truncated_shard_is_refused_naming_file_and_tensor(sharded):
    path = sharded / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"MODEL/model-00002-of-00003.safetensors: tensor '.*weight' ends at byte"
    ):
        opened(sharded)


def test_a_dangling_link_is_a_missing_file(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    (sharded / "model-00002-of-00003.safetensors").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00003.safetensors, which is not in the folder"):
        opened(sharded)


def test_weights_behind_links_are_read_as_in_the_cache_of_the_hub(sharded, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in sharded.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert list(opened(snapshot).tensors) == list(opened(sharded).tensors)


def folder_with(tmp_path, *names, config=True):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    if config:
        (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [
        ((), True, "holds no weights"),
        (("README.md",), False, "has no config.json; name the folder that holds config.json"),
        (("adapter_config.json", "adapter_model.safetensors"), False, "is an adapter .*BASE[+]MODEL"),
        (("adapter_config.json", "adapter_model.safetensors"), True, "is an adapter .*BASE[+]MODEL"),
        (("training_args.bin",), True, "holds training_args.bin; only .* can be merged"),
        (("a.pt", "b.pt"), True, "holds a.pt and 1 more; only .* can be merged"),
        (("model.gguf",), True, "holds model.gguf"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_model_says_what_to_do(tmp_path, names, config, expected):
    with pytest.raises(CheckpointError, match=expected):
        opened(folder_with(tmp_path, *names, config=config))


def test_an_adapter_beside_a_whole_model_is_ignored(tmp_path):
    folder = write_llama(tmp_path, layers=1)
    folder_with(folder, "adapter_config.json", "adapter_model.safetensors", config=False)
    assert "model.norm.weight" in opened(folder).tensors


def test_paths_are_relative_to_the_given_folder(tmp_path):
    write_llama(tmp_path / "m", layers=1)
    assert opened("./m", cwd=str(tmp_path)).url == str(tmp_path / "m")
    assert opened("m", cwd=str(tmp_path)).notes == ()


def test_a_folder_named_like_a_hub_id_wins_and_says_so(tmp_path):
    write_llama(tmp_path / "org" / "name", layers=1)
    checkpoint = opened("org/name", cwd=str(tmp_path))
    assert checkpoint.hub_id is None
    assert checkpoint.origin == "local folder"
    assert checkpoint.notes == (f"the local folder {tmp_path}/org/name is used, not the hub's org/name",)
    with pytest.raises(CheckpointError, match=r"has no revisions, found @v1; write hf://org/name@v1"):
        opened("org/name", cwd=str(tmp_path), revision="v1")


def test_what_is_not_there_says_where_was_looked(tmp_path):
    with pytest.raises(
        CheckpointError, match=f"there is no folder {tmp_path}/nowhere, and it does not look like a hub id"
    ):
        opened("nowhere", cwd=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        opened("empty", cwd=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"is a file, expected a folder; name {tmp_path} instead"):
        opened("file", cwd=str(tmp_path))


def test_routed_experts_and_the_next_n_layer_are_all_there(tmp_path):
    folder = write_deepseek(tmp_path, layers=3, experts=4, shard_bytes=30_000)
    names = set(opened(folder).tensors)
    assert names == set(read_tensors(folder))
    assert {"model.layers.2.mlp.experts.3.up_proj.weight", "model.layers.3.eh_proj.weight"} <= names
