"""PyTorch's own weight files: every tensor where torch has it, the same merge as their safetensors twin."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import read_tensors, write_deepseek, write_llama
from pickles import pickle_twin, state_code, tensor_code, write_zip

import raymerge
import raymerge.checkpoint.open as open_module
from raymerge.checkpoint import pickled
from raymerge.checkpoint.open import open_checkpoint
from raymerge.checkpoint.pickle_zip import Ranges, _start_by_layout, data_start, read_directory
from raymerge.dtypes import DType
from raymerge.errors import ChangedError, CheckpointError
from raymerge.storage import store_for

torch = pytest.importorskip("torch")
FORMS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}
INDEX = "pytorch_model.bin.index.json"


def opened(folder, **options):
    return open_checkpoint(str(folder), **{"revision": None, "display": "MODEL", "cwd": "/"} | options)


def content(ref):
    buffer = bytearray(ref.spec.nbytes)
    store_for(ref.file.url).read_into(ref.file.url, buffer, offset=ref.offset, version=ref.file.version)
    return bytes(buffer)


def saved(tmp_path, state, **options):
    """A folder with just these tensors."""
    (tmp_path / "config.json").write_text("{}")
    torch.save(state, tmp_path / "pytorch_model.bin", **options)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_a_twin_has_the_same_tensors(tmp_path, form, shard_bytes):
    plain = write_llama(tmp_path / "plain", layers=2, shard_bytes=shard_bytes)
    twin = opened(pickle_twin(plain, tmp_path / "twin", **FORMS[form]))
    expected = opened(plain)
    assert twin.tensors.keys() == expected.tensors.keys()
    assert len(twin.files) == len(expected.files)
    assert twin.side_files == expected.side_files
    assert twin.notes == ()
    for name, ref in twin.tensors.items():
        assert ref.spec == expected.tensors[name].spec
        assert content(ref) == content(expected.tensors[name])


@pytest.mark.parametrize("form", FORMS)
def test_a_merge_of_twins_writes_the_same_bytes(tmp_path, form):
    """The plans differ, and with them the digest in each header; the rest of each file may not.

    The form before zips stores tensors in the order of their addresses in memory, so there the order may differ.
    """
    outputs = []
    for kind in ("plain", "twin"):
        folder = tmp_path / kind
        for seed, name in enumerate("ab"):
            plain = write_llama(tmp_path / "plain" / name, layers=2, seed=seed, shard_bytes=20_000)
            if kind == "twin":
                pickle_twin(plain, folder / name, **FORMS[form])
        recipe = {
            "merge_method": "slerp", "base_model": str(folder / "a"), "parameters": {"t": 0.3}, "dtype": "bfloat16",
            "models": [{"model": str(folder / name)} for name in "ab"],
        }  # fmt: skip
        raymerge.merge(recipe, folder / "out", executor="inline", out_shard_size="20KB")
        outputs.append(folder / "out")
    first, second = ({path.name: path.read_bytes() for path in out.glob("model*")} for out in outputs)
    digests = [json.loads((out / "raymerge.json").read_text())["plan"].encode() for out in outputs]
    assert digests[0] != digests[1]
    assert len(first) > 2
    assert first.keys() == second.keys()
    arrays = [read_tensors(out) for out in outputs]
    assert all(np.array_equal(arrays[0][name], array) for name, array in arrays[1].items())
    for name, data in second.items() if form != "legacy" else ():
        assert data.replace(digests[1], digests[0]) == first[name]


def test_copied_ranges_come_from_pickles_too(tmp_path):
    plain = write_llama(tmp_path / "plain", layers=3)
    twin = pickle_twin(plain, tmp_path / "twin")
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [{"model": str(twin), "layer_range": [1, 3]}]}]}
    raymerge.merge(recipe, tmp_path / "out", executor="inline")
    source, made = read_tensors(plain), read_tensors(tmp_path / "out")
    for name, array in made.items():
        np.testing.assert_array_equal(
            array, source[name.replace("layers.1", "layers.2").replace("layers.0", "layers.1")]
        )


DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


@pytest.mark.parametrize("name", DTYPES)
def test_every_element_type_has_its_name_and_bytes(tmp_path, name):
    values = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, name))
    ref = opened(saved(tmp_path, {"before": torch.ones(3), "x": values, "one": values[1]})).tensors
    raw = values.contiguous().view(torch.uint8).numpy().tobytes()
    assert ref["x"].spec.dtype is DType(DTYPES[name])
    assert ref["x"].spec.shape == (2, 3, 4)
    assert content(ref["x"]) == raw
    assert content(ref["one"]) == raw[len(raw) // 2 :]


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_share_a_storage_lie_in_the_same_bytes(tmp_path, form):
    base = torch.arange(12.0).reshape(3, 4)
    model = torch.nn.Linear(4, 3)
    state = {**model.state_dict(), "base": base, "same": base, "row": base[1:2], "column": base[:1, :1]}
    state |= {"parameter": torch.nn.Parameter(base), "scalar": base[2, 3], "empty": torch.ones(0, 5)}
    tensors = opened(saved(tmp_path, state, **FORMS[form])).tensors
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        assert content(tensors[name]) == tensor.detach().numpy().tobytes()
    assert tensors["base"].offset == tensors["same"].offset == tensors["row"].offset - 16


VIEWS = {
    "transposed": torch.ones(2, 3).t(), "expanded": torch.ones(1, 3).expand(2, 3), "strided": torch.ones(6)[::2],
    "columns": torch.ones(4, 4)[:, :2],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_views_that_are_no_range_are_refused_together(tmp_path, form):
    folder = saved(tmp_path, {"whole": torch.ones(2), **VIEWS}, **FORMS[form])
    with pytest.raises(CheckpointError) as caught:
        opened(folder)
    assert len(caught.value.problems) == len(VIEWS)
    for name, problem in zip(VIEWS, caught.value.problems, strict=True):
        assert f"MODEL/pytorch_model.bin: tensor '{name}'" in problem.subject
        assert "with strides" in problem.message
        assert "save_pretrained" in problem.remedy


class Counting:
    def __init__(self, inner):
        self.inner = inner
        self.ranges = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def read_into(self, url, buffer, *, offset, version):
        self.ranges.append((offset, offset + len(buffer)))
        self.inner.read_into(url, buffer, offset=offset, version=version)


def spans(path):
    """Where the storages lie, by the local headers alone."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            header = data[info.header_offset :][:30]
            start = info.header_offset + 30 + int.from_bytes(header[26:28], "little")
            start += int.from_bytes(header[28:30], "little")
            yield info.filename, start, start + info.file_size


def test_no_weight_byte_is_read_and_few_ranges_are(tmp_path, monkeypatch):
    path = pickle_twin(write_llama(tmp_path / "plain", layers=12), tmp_path / "twin") / "pytorch_model.bin"
    weights = [span for span in spans(path) if "/data/" in span[0]]
    assert len(weights) > 100
    store = Counting(store_for(str(path)))
    pickled.read_pickled(store, store.info(str(path)), "MODEL")
    for start, end in store.ranges:
        assert not any(start < last and first < end for _, first, last in weights)
    assert len(store.ranges) < 10
    monkeypatch.setattr(pickled, "is_local", lambda _: False)
    monkeypatch.setattr(pickled, "_REMOTE_GUESS_BYTES", 40_000)
    store.ranges.clear()
    pickled.read_pickled(store, store.info(str(path)), "MODEL")
    assert len(store.ranges) == 2


@pytest.mark.parametrize("alignment", [None, 4096])
def test_the_layout_tells_no_other_place_than_the_local_header(tmp_path, alignment):
    """PyTorch's alignment needs no read of local headers; another one, or another writer, does."""
    path = pickle_twin(write_deepseek(tmp_path / "plain", layers=2, experts=3), tmp_path / "t") / "pytorch_model.bin"
    if alignment:
        from torch.utils.serialization import config

        with config.patch("save.storage_alignment", alignment):
            torch.save(torch.load(path), path)
    store = Counting(store_for(str(path)))
    ranges = Ranges(store, store.info(str(path)), guess_bytes=0)
    directory = read_directory(ranges, "MODEL")
    told = []
    for name, start, _ in spans(path):
        assert data_start(ranges, directory[name], "MODEL") == start
        told.append(_start_by_layout(directory[name]) is not None)
    assert len(told) > 60
    assert all(told) is (alignment is None)


def test_a_zip_that_python_wrote_is_read(tmp_path):
    plain = write_llama(tmp_path / "plain", layers=1)
    twin = pickle_twin(plain, tmp_path / "twin")
    path = twin / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in reversed(entries.items()):
            archive.writestr(name, data)
    for name, ref in opened(twin).tensors.items():
        assert content(ref) == content(opened(plain).tensors[name])


class Sparse(io.FileIO):
    """Leaves a hole where much is written."""

    def write(self, data):
        if len(data) < 2**20:
            return super().write(data)
        self.seek(len(data), io.SEEK_CUR)
        return len(data)


def test_sizes_and_offsets_past_4_gib_are_read(tmp_path, monkeypatch):
    """They stand in other fields of the zip."""
    monkeypatch.setattr(zipfile, "crc32", lambda *_: 0)
    (tmp_path / "config.json").write_text("{}")
    code = state_code(
        big=tensor_code((2**31 + 2**24,), (1,), storage="HalfStorage", count=2**31 + 2**24),
        small=tensor_code((3,), (1,), key="1", count=3),
    )
    with Sparse(tmp_path / "pytorch_model.bin", "w+") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(129):
                entry.write(bytes(2**25))
        archive.writestr("archive/data/1", np.arange(3, dtype=np.float32).tobytes())
    tensors = opened(tmp_path).tensors
    assert tensors["big"].spec.nbytes == 2**32 + 2**25
    assert content(tensors["small"]) == np.arange(3, dtype=np.float32).tobytes()


def test_two_files_never_share_an_identity_and_a_change_shows(tmp_path):
    """Same size, same pickle, same time of change."""
    paths = []
    for seed in (1, 2):
        plain = write_llama(tmp_path / f"plain {seed}", layers=1, seed=seed)
        paths.append(pickle_twin(plain, tmp_path / str(seed)) / "pytorch_model.bin")
        os.utime(paths[-1], (1, 1))
    first, second = (opened(path.parent).files[0] for path in paths)
    assert first.identity != second.identity
    assert opened(paths[0].parent).files[0] == first
    shutil.copy(paths[1], paths[0])
    assert opened(paths[0].parent).files[0].identity != first.identity
    with pytest.raises(ChangedError):
        store_for(first.url).read_into(first.url, bytearray(4), offset=0, version=first.version)


def test_a_changed_pickle_at_the_same_size_and_time_is_another_input(tmp_path):
    identities = set()
    for stride in (1, 2):
        write_zip(tmp_path / "pytorch_model.bin", state_code(x=tensor_code((1,), (stride,))), {"0": bytes(24)})
        (tmp_path / "config.json").write_text("{}")
        os.utime(tmp_path / "pytorch_model.bin", (1, 1))
        identities.add(opened(tmp_path).files[0].identity)
    assert len(identities) == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_twin_on_the_hub_is_range_read(hub, tmp_path, form):
    plain = write_llama(tmp_path / "plain", layers=2, shard_bytes=20_000)
    hub.add_folder("org/twin", pickle_twin(plain, tmp_path / "twin", **FORMS[form]))
    twin = opened("org/twin")
    assert hub.count("content") <= 3 * len(twin.files)
    expected = opened(plain)
    assert twin.tensors.keys() == expected.tensors.keys()
    for name, ref in twin.tensors.items():
        assert ref.file.identity.startswith("sha256:")
        assert content(ref) == content(expected.tensors[name])


def test_safetensors_win_as_in_transformers(tmp_path):
    plain = write_llama(tmp_path / "plain", layers=1)
    twin = pickle_twin(plain, tmp_path / "twin")
    shutil.copy(plain / "model.safetensors", twin)
    (twin / "training_args.bin").write_bytes(b"not read")
    assert [Path(file.url).name for file in opened(twin).files] == ["model.safetensors"]


def test_only_the_model_is_read_among_other_pickles(tmp_path):
    folder = saved(tmp_path, {"x": torch.ones(2)})
    for name in ("training_args.bin", "optimizer.bin", "adapter_model.bin", "pytorch_model.bin.bak"):
        (folder / name).write_bytes(b"not read")
    assert list(opened(folder).tensors) == ["x"]


@pytest.fixture
def sharded(tmp_path):
    return pickle_twin(write_llama(tmp_path / "plain", layers=2, shard_bytes=20_000), tmp_path / "twin")


def test_shards_without_an_index_are_one_model_if_none_is_missing(sharded):
    names = list(opened(sharded).tensors)
    (sharded / INDEX).unlink()
    assert list(opened(sharded).tensors) == names
    (sharded / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks pytorch_model-00002-of-00003\.bin, and has no index"):
        opened(sharded)


INDEX_FAULTS = {
    "absent": ("pytorch_model-9.bin", "names pytorch_model-9.bin, which is not in the folder"),
    "safetensors": ("model.safetensors", "which is no PyTorch file"),
    "parent": ("../x.bin", "outside the folder"),
    "wrong file": ("pytorch_model-00001-of-00003.bin", "which has it not; pytorch_model-00003-of-00003.bin has"),
}


@pytest.mark.parametrize("case", INDEX_FAULTS)
def test_a_wrong_index_is_refused_by_its_name(sharded, case):
    file_name, expected = INDEX_FAULTS[case]
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = file_name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        opened(sharded)
    assert expected in str(caught.value)
    assert f"MODEL/{INDEX}" in str(caught.value)


def test_opening_pickles_imports_no_torch(tmp_path):
    folder = pickle_twin(write_llama(tmp_path / "plain", layers=1), tmp_path / "twin")
    code = (
        "import sys\nfrom raymerge.checkpoint.open import open_checkpoint\n"
        f"assert open_checkpoint({str(folder)!r}, revision=None, display='m', cwd='/').tensors\n"
        "assert not {'torch', 'numpy', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_store_that_reads_wrongly_cannot_be_blamed_on_the_zip(sharded, monkeypatch):
    def changed(*_, **__):
        raise ChangedError("changed")

    store = Counting(store_for(str(sharded)))
    monkeypatch.setattr(store, "read_into", changed, raising=False)
    monkeypatch.setattr(open_module, "store_for", lambda _: store)
    with pytest.raises(ChangedError):
        opened(sharded)
