"""Pickles that would run something, or take forever, and damaged ones: refused by name, and nothing ran."""

from __future__ import annotations

import contextlib
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from checkpoints import write_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickles import integer, named, pickle_twin, sizes, state_code, tensor_code, text, write_zip

from raymerge.checkpoint.open import open_checkpoint
from raymerge.checkpoint.pickle_machine import DamagedPickleError, RefusedPickleError, run_pickle
from raymerge.checkpoint.pickled import read_pickled
from raymerge.errors import CheckpointError
from raymerge.storage import store_for
from raymerge.storage.base import ObjectInfo, Store

X = tensor_code((2, 3), (3, 1))

# A module that leaves a mark when it is imported, and whose parts do when they are called, made, or given a state.
TRAP = """
import pathlib, sys
def run(*arguments):
    pathlib.Path(arguments[0]).touch()
class Made:
    def __new__(cls, *arguments, **named):
        run(*arguments)
        return object.__new__(cls)
class Filled:
    def __setstate__(self, state):
        run(state)
class Thing:
    pass
"""
RUN, MADE = named("trap", "run"), named("trap", "Made")


def nested(payload: bytes) -> bytes:
    """In the place of a tensor's hooks, where a reader of tensors looks last."""
    return state_code(x=X.replace(named("collections", "OrderedDict") + b")R", payload))


def reduced(function: bytes, argument: str) -> bytes:
    return function + text(argument) + b"\x85R"


def framed(code: bytes) -> bytes:
    return b"\x95" + struct.pack("<Q", len(code)) + code


# Each leaves `mark` behind when Python's own unpickler reads it.
PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda mark: b"\x80\x02" + reduced(named("os", "system"), f"touch {mark}") + b".",
    "posix.system": lambda mark: b"\x80\x02" + reduced(named("posix", "system"), f"touch {mark}") + b".",
    "builtins.eval": lambda mark: b"\x80\x02" + reduced(named("builtins", "eval"), f"open({mark!r}, 'w')") + b".",
    "builtins.exec": lambda mark: b"\x80\x02" + reduced(named("builtins", "exec"), f"open({mark!r}, 'w')") + b".",
    "python 2": lambda mark: b"\x80\x02" + reduced(named("__builtin__", "eval"), f"open({mark!r}, 'w')") + b".",
    "runpy": lambda mark: b"\x80\x02" + reduced(named("trap", "run"), mark) + b".",
    "nested": lambda mark: nested(reduced(RUN, mark)),
    "stack global": lambda mark: b"\x80\x04\x8c\x04trap\x8c\x03run\x93" + text(mark) + b"\x85R.",
    "inst": lambda mark: b"\x80\x02(" + text(mark) + b"itrap\nrun\n.",
    "inst of a class": lambda mark: b"\x80\x02(" + text(mark) + b"itrap\nMade\n.",
    "obj": lambda mark: b"\x80\x02(" + RUN + text(mark) + b"o.",
    "newobj": lambda mark: b"\x80\x02" + MADE + text(mark) + b"\x85\x81.",
    "newobj_ex": lambda mark: b"\x80\x04" + MADE + text(mark) + b"\x85}\x92.",
    "build": lambda mark: b"\x80\x02" + named("trap", "Filled") + b")\x81" + text(mark) + b"b.",
    "build by name": lambda mark: (
        b"\x80\x02ctrap\nThing\n)\x81}" + text("f") + RUN + b"sb0" + reduced(RUN, mark) + b"."
    ),
    "ext1": lambda mark: b"\x80\x02\x82\xc8" + text(mark) + b"\x85R.",
    "ext2": lambda mark: b"\x80\x02\x83\xc8\x00" + text(mark) + b"\x85R.",
    "ext4": lambda mark: b"\x80\x02\x84\xc8\x00\x00\x00" + text(mark) + b"\x85R.",
    "memo": lambda mark: b"\x80\x02" + RUN + b"q\x070" + b"h\x07" + text(mark) + b"\x85R.",
    "memo under another name": lambda mark: (
        b"\x80\x02" + named("collections", "OrderedDict") + b"q\x000" + RUN + b"q\x000h\x00" + text(mark) + b"\x85R."
    ),
    "after a good state": lambda mark: state_code(x=b"}")[:-1] + b"0" + reduced(RUN, mark) + b".",
    "a key": lambda mark: b"\x80\x02}" + reduced(RUN, mark) + X + b"s.",
    "protocol 0": lambda mark: b"ctrap\nrun\n(V" + mark.encode() + b"\ntR.",
    "protocol 0 inside": lambda mark: b"\x80\x02ctrap\nrun\n(S'" + mark.encode() + b"'\ntR.",
    "frames": lambda mark: pickle.dumps(0, 4)[:2] + framed(RUN + text(mark) + b"\x85R."),
    "a persistent id": lambda mark: b"\x80\x02(" + text("storage") + reduced(RUN, mark) + b"tQ.",
    "a list of calls": lambda mark: b"\x80\x02](" + reduced(RUN, mark) + reduced(RUN, mark) + b"e.",
}

CONTROL = """
import copyreg, pickle, sys
sys.path.insert(0, {folder!r})
copyreg.add_extension("trap", "run", 200)
class Loader(pickle.Unpickler):
    def persistent_load(self, told): return told
import io
for name in {names!r}:
    try:
        Loader(io.BytesIO(open({folder!r} + "/" + name + ".pkl", "rb").read())).load()
    except Exception as error:
        print(name, repr(error))
"""

READ = """
import copyreg, sys
sys.path.insert(0, {folder!r})
copyreg._extension_registry[("trap", "run")] = 200
copyreg._inverted_registry[200] = ("trap", "run")
from raymerge.checkpoint.pickled import read_pickled
from raymerge.errors import CheckpointError
from raymerge.storage import store_for
import encodings.cp437, socket, zipfile  # what reading imports by itself
events = []
watched = ("exec", "compile", "os.", "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "import")
sys.addaudithook(lambda name, arguments: events.append((name, arguments)) if name.startswith(watched) else None)
for name in {names!r}:
    for form in (".bin", ".pkl"):
        path = {folder!r} + "/" + name + form
        store = store_for(path)
        info = store.info(path)
        before = len(events)
        try:
            read_pickled(store, info, name + form)
        except CheckpointError as error:
            print(name + form, error, sep=chr(9))
        for event in events[before:]:
            print("RAN", name + form, event)
assert "trap" not in sys.modules
"""


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return result.stdout


def test_nothing_of_a_malicious_pickle_runs(tmp_path: Path) -> None:
    """Every payload is shown to be live first: Python's own unpickler runs it."""
    (tmp_path / "trap.py").write_text(TRAP)
    names = [name.replace(" ", "-") for name in PAYLOADS]
    for name, make in zip(names, PAYLOADS.values(), strict=True):
        payload = make(str(tmp_path / f"{name}.mark"))
        (tmp_path / f"{name}.pkl").write_bytes(payload)
        write_zip(tmp_path / f"{name}.bin", payload, {"0": bytes(24)})
    told = python(CONTROL.format(folder=str(tmp_path), names=names))
    marks = [tmp_path / f"{name}.mark" for name in names]
    assert [mark.stem for mark in marks if not mark.exists()] == [], told
    for mark in marks:
        mark.unlink()
    told = python(READ.format(folder=str(tmp_path), names=names))
    assert "RAN" not in told, told
    assert not list(tmp_path.glob("*.mark"))
    refused = dict(line.split("\t", 1) for line in told.splitlines())
    assert refused.keys() == {f"{name}{form}" for name in names for form in (".bin", ".pkl")}
    for name in names:
        assert "nothing of it was run" in refused[f"{name}.bin"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (reduced(named("os", "system"), "x"), r"names 'os\.system'"),
        (b"\x8c\x02os\x8c\x06system\x93", r"names 'os\.system'"),
        (named("torch", "load"), r"names 'torch\.load'"),
        (named("torch._utils", "_rebuild_tensor_v2.__globals__"), "__globals__'"),
        (b"\x8c\x05torch\x8c\x19_utils._rebuild_tensor_v2\x93", "is no part of a tensor"),
        (b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93", "__init__'"),
        (named("torch.hub", "load"), r"names 'torch\.hub\.load'"),
        (named("numpy.core.multiarray", "_reconstruct"), "names 'numpy"),
        (named("torch", "QInt8Storage"), r"names 'torch\.QInt8Storage'"),
        (named("torch", "ComplexDoubleStorage"), r"names 'torch\.ComplexDoubleStorage'"),
        (b"(K\x01ios\nsystem\n", "uses INST"),
        (b"(K\x01o", "uses OBJ"),
        (b"))\x81", "uses NEWOBJ"),
        (b")})\x92", "uses NEWOBJ_EX"),
        (b"\x82\x01", "uses EXT1"),
        (b"P1\n", "uses PERSID"),
        (b"L" + b"9" * 10_000_000 + b"L\n", "uses LONG"),
        (b"\x8b" + b"\xff" * 4, "uses LONG4"),
        (b"\xff", "unknown opcode 0xff"),
        (b"\x80\x06", "has protocol 6"),
        (b")b", "not a sound pickle"),
        (b"]}b", "sets the state of a list"),
        (b"})b", "sets the state of a dict"),
        (named("collections", "OrderedDict") + b"}b", "sets the state of a name"),
        (b"})R", "calls a dict"),
        (named("torch", "FloatStorage") + b")R", r"calls torch\.FloatStorage"),
        (named("collections", "OrderedDict") + b"]R", "with a list for arguments"),
        (named("collections", "OrderedDict") + b"))\x86R", "of 2 arguments"),
        (named("collections", "OrderedDict") + b"](K\x01e\x85R", "something else than pairs"),
        (b"})K\x01s", "uses a tuple as a key"),
        (b"}}K\x01s", "uses a dict as a key"),
        (b"]K\x01K\x01s", "sets items of a list"),
        (b"}K\x01a", "appends to a dict"),
        (b"K\x01K\x02\x93", "names something by what is no text"),
        (b"K\x01Q", "does not give a storage"),
        (b"(" + text("module") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x01tQ", "a storage"),
        (b"(" + text("storage") + text("FloatStorage") + text("0") + text("cpu") + b"K\x01tQ", "a storage's parts"),
        (tensor_code((2,), (1,), count=-1), "a storage's parts"),
        (tensor_code((2,), (1,), offset=-1), "sizes that are not negative"),
        (tensor_code((-2,), (1,)), "sizes that are not negative"),
        (tensor_code((2,), (-1,)), "sizes that are not negative"),
        (tensor_code((2**63,), (1,)), "sizes that are not negative"),
        (tensor_code((1,) * 65, (1,) * 65), "sizes that are not negative"),
        (tensor_code((2, 3), (1,)), "as many strides"),
        (tensor_code((2,), (1,), storage="UntypedStorage"), "a storage with an element type"),
        (tensor_code((2,), (1,)).replace(b"\x89", b"\x89NN"), "does not give a tensor's parts"),
        (tensor_code((2,), (1,)).replace(b")RtR", b")R}" + text("neg") + b"\x88stR"), "does not give a tensor's parts"),
        (named("torch._utils", "_rebuild_parameter") + b"}\x89}\x87R", "a parameter's tensor"),
    ],
)
def test_what_is_no_part_of_a_tensor_is_refused_by_name(code: bytes, said: str) -> None:
    with pytest.raises((RefusedPickleError, DamagedPickleError), match=said):
        run_pickle(BytesIO(b"\x80\x02" + code + b"."))


BOMBS = {
    "tuples in tuples": b")" + b"\x85" * 1_000_000 + b".",
    "lists in lists": b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "dicts in dicts": b"}" * 1_000_000 + b"K\x01" + b"}s" * 10 + b".",
    "marks": b"(" * 1_000_000 + b".",
    "doubled again and again": b")q\x00" + b"h\x00h\x00\x86q\x00" * 100_000 + b".",
    "a doubled key": b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 100 + b"K\x01s.",
    "a doubled hook": nested(b")q\x00" + b"h\x00h\x00\x86q\x00" * 100),
    "a doubled shape": state_code(x=X.replace(sizes((2, 3)), b")q\x00" + b"h\x00h\x00\x86q\x00" * 100)),
    "itself": b"}q\x00" + text("x") + b"h\x00s.",
    "too many operations": b"N" * 5_500_000 + b".",
    "a long text": b"X\xff\xff\xff\xff" + b"a" * 100,
    "a longer text": b"\x8d" + b"\xff" * 8 + b"a" * 100,
    "a longer one that fits": b"\x8d" + b"\xff" * 7 + b"\x7f" + b"a" * 100,
    "a frame": b"\x95" + b"\xff" * 8 + b".",
    "a far memo": b")r\xff\xff\xff\xff.",
    "a number": b"\x8a\xff" + b"\x7f" * 255 + b".",
    "a shape": state_code(x=tensor_code((2**62,) * 64, (1,) * 64)),
    "a storage": state_code(x=tensor_code((2**62,), (1,), count=2**62)),
    "an empty shape": state_code(x=tensor_code((2**62, 0, 2**62), (1, 1, 1))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_seconds_at_most(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.bin", b"\x80\x04" + BOMBS[name], {"0": bytes(24)})
    store = store_for(str(path))
    began = time.monotonic()
    try:
        read_pickled(store, store.info(str(path)), "x.bin")
    except CheckpointError:
        pass
    else:
        assert name == "an empty shape"
    assert time.monotonic() - began < 20  # some 3 s on a machine that does nothing else


def opened(folder: Path) -> dict[str, object]:
    return open_checkpoint(str(folder), revision=None, display="MODEL", cwd="/").tensors


def model(tmp_path: Path, code: bytes, **options: object) -> Path:
    (tmp_path / "config.json").write_text("{}")
    write_zip(tmp_path / "pytorch_model.bin", code, **{"storages": {"0": bytes(24)}} | options)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (state_code(x=tensor_code((7,), (1,), count=7)), {}, "'x'.* storage of 28 bytes, of which the file has 24"),
        (state_code(x=tensor_code((7,), (1,))), {}, r"'x'.*shape \[7\] from element 0 overruns .* 24 bytes"),
        (state_code(x=tensor_code((5,), (1,), offset=2)), {}, r"'x'.*from element 2 overruns"),
        (state_code(x=tensor_code((2,), (1,), key="1")), {}, "'x'.* lies in storage '1', which is not in the file"),
        (state_code(x=tensor_code((2,), (1,), key="../data.pkl")), {}, "which is not in the file"),
        (state_code(x=b"K\x01"), {}, "holds a int under 'x', .*; save the model's state_dict"),
        (state_code(state_dict=state_code(x=X)[2:-1]), {}, "holds a dict under 'state_dict'"),
        (state_code(__metadata__=X), {}, "names a tensor '__metadata__'"),
        (b"\x80\x02}" + text("\ud800") + X + b"s.", {}, r"names a tensor '\\ud800'"),
        (b"\x80\x02}K\x01" + X + b"s.", {}, "under '1'"),
        (b"\x80\x02" + X + b".", {}, "holds one tensor, expected tensors by name"),
        (b"\x80\x02].", {}, "holds a list"),
        (state_code(x=X), {"compression": zipfile.ZIP_DEFLATED}, r"its entry 'archive/.*' is compressed"),
        (state_code(x=X), {"byteorder": b"big"}, "written on a big-endian machine"),
        (state_code(x=X), {"constants.pkl": b"x"}, "is a TorchScript program"),
        (state_code(x=X), {"folder": "a/b"}, "is a zip with 0 data.pkl"),
        (state_code(x=X)[:-1], {}, "not a sound pickle"),
        (b"", {}, "not a sound pickle"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_file(
    tmp_path: Path, code: bytes, options: dict[str, object], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        opened(model(tmp_path, code, **options))
    assert str(caught.value).startswith("MODEL/pytorch_model.bin")
    assert all(problem.remedy for problem in caught.value.problems)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, state_code(x=X))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(folder / "pytorch_model.bin", "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(CheckpointError, match="holds 'archive/data/0' twice"):
        opened(folder)


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, state_code(x=X))
    data = bytearray((folder / "pytorch_model.bin").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (folder / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"its entry 'archive/data\.pkl' is encrypted"):
        opened(folder)


def test_a_directory_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, state_code(x=X))
    data = (folder / "pytorch_model.bin").read_bytes()
    directory = data.index(b"PK\x01\x02")
    for place in (directory - 24 - 7, 5):
        damaged = bytearray(data)
        damaged[data.index(b"PK\x01\x02", directory + 1) + 42 :][:4] = struct.pack("<I", place)
        position = data.index(b"PK\x01\x02", directory + 1) + 42
        damaged[position : position + 4] = struct.pack("<I", place)
        (folder / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"is not where|more than lie before"):
            opened(folder)


@pytest.mark.parametrize("cut", [1, 22, 40, 200, 1000])
def test_a_cut_zip_is_refused(tmp_path: Path, cut: int) -> None:
    pytest.importorskip("torch")
    folder = pickle_twin(write_llama(tmp_path / "plain", layers=1), tmp_path / "twin")
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match=r"MODEL/pytorch_model\.bin: its zip directory cannot be read"):
        opened(folder)


def test_files_that_are_no_pickles_say_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for data, said in (
        (b"", "is not a file of torch.save"),
        (b"\x10\0\0\0\0\0\0\0{}", "is not a file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git lfs"),
        (pickle.dumps({"x": 1}, protocol=2), "is not a file of torch.save"),
        (pickle.dumps(subprocess.run, protocol=4), r"names 'subprocess\.run'"),
        (b"PK\x03\x04", "its zip directory cannot be read"),
    ):
        (tmp_path / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(CheckpointError, match=said):
            opened(tmp_path)


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("legacy")
    plain = write_llama(folder / "plain", layers=1)
    return pickle_twin(plain, folder / "twin", _use_new_zipfile_serialization=False)


def test_damage_to_a_file_from_before_zips_is_seen(legacy: Path, tmp_path: Path) -> None:
    data = (legacy / "pytorch_model.bin").read_bytes()
    (tmp_path / "config.json").write_text("{}")
    for damaged, said in (
        (data[:-1], r"its storages end at byte \d+, the file has"),
        (data + b"x", r"its storages end at byte \d+, the file has"),
        (data[:500], "not a sound pickle"),
        (data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "big-endian"),
        (data.replace(b"M\xe9\x03.", b"M\xea\x03."), "is not a file of torch.save"),
        (data.replace(b"BFloat16Storage", b"DoubleStorage", 1), "its storages end at|two sizes"),
    ):
        assert damaged != data
        (tmp_path / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=said):
            opened(tmp_path)


def test_a_long_pickle_from_before_zips_is_read_in_growing_pieces(
    legacy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymerge.checkpoint import pickled

    expected = opened(legacy)
    for first in (1, 100, 1000):
        monkeypatch.setattr(pickled, "_LEGACY_GUESS_BYTES", first)
        assert opened(legacy) == expected


class Memory(Store):
    """One file that lies in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, url: str, buffer: bytearray, *, offset: int, version: str) -> None:
        assert offset >= 0
        assert offset + len(buffer) <= len(self.data)
        buffer[:] = self.data[offset : offset + len(buffer)]

    info = list = read = create = delete = probe = clean = None  # type: ignore[assignment]


Memory.__abstractmethods__ = frozenset()


def holds(data: bytes) -> None:
    """Whatever a file holds: CheckpointError, or tensors that lie inside it."""
    for url in ("/x.bin", "s3://bucket/x.bin"):
        info = ObjectInfo(url=url, nbytes=len(data), version="1")
        try:
            entries, _ = read_pickled(Memory(data), info, "x.bin")
        except CheckpointError as error:
            entries = [] if str(error).startswith("x.bin") else None
        for spec, offset in entries:
            assert 0 <= offset <= offset + spec.nbytes <= len(data)


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
CODES = st.sampled_from(
    [
        b"\x80\x02", b"(", b")", b"]", b"}", b"N", b"\x88", b"0", b"K\x01", b"a", b"e", b"s", b"u", b"t", b"\x85",
        b"\x86", b"\x87", b"R", b"b", b"Q", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x94", b"\x93", text("x"),
        text("storage"), text("0"), text("cpu"), integer(6), sizes((2, 3)), sizes((3, 1)), X, b".",
        named("collections", "OrderedDict"), named("torch._utils", "_rebuild_tensor_v2"),
        named("torch._utils", "_rebuild_parameter"), named("torch", "FloatStorage"), named("os", "system"),
    ]
)  # fmt: skip


@FUZZ
@given(st.binary(max_size=200) | st.lists(CODES, max_size=30).map(b"".join))
def test_any_code_ends_in_a_value_or_a_refusal(code: bytes) -> None:
    with contextlib.suppress(RefusedPickleError, DamagedPickleError):
        run_pickle(BytesIO(code))


@FUZZ
@given(st.lists(CODES, max_size=12).map(b"".join))
def test_any_state_is_tensors_inside_the_file_or_a_refusal(code: bytes) -> None:
    with BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}(" + text("y") + X + text("x") + code + b"u.")
            archive.writestr("a/data/0", bytes(24))
        holds(file.getvalue())


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory, legacy: Path) -> list[bytes]:
    folder = tmp_path_factory.mktemp("zip")
    plain = write_llama(folder / "plain", layers=1, hidden=8, heads=2, vocab=8, tokenizer=False)
    twins = [
        pickle_twin(plain, folder / "zip"),
        pickle_twin(plain, folder / "legacy", _use_new_zipfile_serialization=False),
    ]
    return [(twin / "pytorch_model.bin").read_bytes() for twin in twins]


@FUZZ
@given(
    form=st.integers(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.floats(0, 1) | st.none(),
)
def test_any_damage_leaves_tensors_inside_the_file_or_a_refusal(
    whole_files: list[bytes], form: int, edits: list[tuple[float, int]], cut: float | None
) -> None:
    data = bytearray(whole_files[form])
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    holds(bytes(data if cut is None else data[: int(cut * len(data))]))


@FUZZ
@given(place=st.floats(0, 1), value=st.integers(0, 255), length=st.integers(1, 9))
def test_any_damage_to_the_directory_is_survived(
    whole_files: list[bytes], place: float, value: int, length: int
) -> None:
    data = bytearray(whole_files[0])
    start = data.index(b"PK\x01\x02")
    position = start + int(place * (len(data) - start - length))
    data[position : position + length] = bytes([value]) * length
    holds(bytes(data))
