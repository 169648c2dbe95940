"""The header reader against the safetensors library: what it rejects we reject, what we accept it loads alike."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from raymerge.checkpoint.header import LENGTH_BYTES, MAX_HEADER_BYTES, build_header, header_nbytes, parse_header
from raymerge.checkpoint.nouns import TensorSpec
from raymerge.dtypes import DType
from raymerge.errors import CheckpointError


def framed(header: bytes | str | dict, data: bytes = b"") -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(LENGTH_BYTES, "little") + header + data


def parse(file: bytes):
    return parse_header(file, len(file), "weights.safetensors")


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD = {
    "empty file": (b"", "too few"),
    "seven bytes": (b"\0" * 7, "too few"),
    "length past the end": ((100).to_bytes(8, "little") + b"{}", "claims a header of 100 bytes"),
    "length over the limit": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "the format allows"),
    "huge length": (b"\xff" * 8 + b"{}", "the format allows"),
    "empty header": (framed(b""), "does not start with"),
    "array": (framed(b"[]"), "does not start with"),
    "leading space": (framed(b" {}"), "does not start with"),
    "not JSON": (framed(b"{a}"), "not valid JSON"),
    "text behind": (framed(b"{} {}"), "not valid JSON"),
    "not UTF-8": (framed(b'{"\xff": 1}'), "not valid JSON"),
    "lone surrogate": (framed(b'{"\\ud800": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "not valid JSON"),
    "NaN": (framed('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"1234"), "not valid JSON"),
    "minus zero": (framed('{"a": {"dtype": "F32", "shape": [0], "data_offsets": [-0, 0]}}'), "not valid JSON"),
    "nested": (framed('{"a": ' + "[" * 100_000), "nested too deeply"),
    "metadata number": (framed({"__metadata__": {"step": 3}}), "__metadata__['step'] is a int"),
    "metadata list": (framed({"__metadata__": []}), "__metadata__ is a list"),
    "entry is a list": (framed({"a": []}), "'a': its entry must hold"),
    "entry lacks shape": (framed({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"), "'a': its entry must"),
    "entry has more": (framed({"a": {**entry(), "scale": 2}}, b"1234"), "'a': its entry must hold"),
    "unknown dtype": (framed({"a": entry("F33")}, b"1234"), "'a': unknown dtype 'F33'"),
    "dtype a list": (framed({"a": entry(dtype=["F32"])}, b"1234"), "'a': unknown dtype"),
    "negative shape": (framed({"a": entry(shape=(-1, -1))}, b"1234"), "'a': shape [-1, -1]"),
    "float shape": (framed({"a": entry(shape=(1.0,))}, b"1234"), "'a': shape [1.0]"),
    "boolean shape": (framed({"a": entry(shape=(True,))}, b"1234"), "'a': shape [True]"),
    "shape a string": (framed({"a": {**entry(), "shape": "1"}}, b"1234"), "'a': shape '1'"),
    "shape an empty object": (framed({"a": {**entry(), "shape": {}}}, b"1234"), "'a': shape {}"),
    "shape an empty string": (framed({"a": {**entry(), "shape": ""}}, b"1234"), "'a': shape ''"),
    "overflowing empty shape": (framed({"a": entry(shape=(2**40, 2**40, 0), offsets=(0, 0))}), "'a'"),
    "negative offset": (framed({"a": entry(offsets=(-4, 0))}, b"1234"), "'a': data_offsets [-4, 0]"),
    "reversed offsets": (framed({"a": entry(offsets=(4, 0))}, b"1234"), "'a': data_offsets [4, 0]"),
    "three offsets": (framed({"a": entry(offsets=(0, 4, 4))}, b"1234"), "'a': data_offsets"),
    "size and shape disagree": (framed({"a": entry(shape=(2,))}, b"1234"), "hold 4 bytes, which is not F32 of shape"),
    "part of a byte": (framed({"a": entry("F4", (3,), (0, 1))}, b"1"), "hold 1 bytes, which is not F4"),
    "hole before": (framed({"a": entry(offsets=(4, 8))}, b"12345678"), "leaves 4 unused bytes after the header"),
    "hole": (framed({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), "'b' at byte 8 of the data leaves 4"),
    "overlap": (framed({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)), "'b' at byte 2 of the data overlaps"),
    "same bytes twice": (framed({"a": entry(), "b": entry()}, bytes(4)), "'b' at byte 0 of the data overlaps"),
    "truncated": (framed({"a": entry()}, b"123"), "'a' ends at byte 4 of 3"),
    "left over": (framed({"a": entry()}, b"12345"), "1 bytes after its last tensor"),
}


LIBRARY_TAKES = {"leading space", "entry has more"}  # the format forbids the first and does not know the second


@pytest.mark.parametrize("case", BAD)
def test_damaged_header_is_refused_naming_file_and_fault(case):
    file, expected = BAD[case]
    with pytest.raises(CheckpointError) as caught:
        parse(file)
    assert "weights.safetensors" in str(caught.value)
    assert expected in str(caught.value)
    if case not in LIBRARY_TAKES:
        with pytest.raises(SafetensorError):
            deserialize(file)


def test_duplicate_names_are_refused_though_the_library_takes_some():
    one = json.dumps(entry())
    file = framed(f'{{"a": {one}, "a": {one}}}', b"1234")
    with pytest.raises(CheckpointError, match="holds 'a' twice"):
        parse(file)


def test_zero_size_tensors_are_accepted_where_they_are_consistent():
    file = framed(
        {"b": entry(shape=(0, 3), offsets=(4, 4)), "a": entry(), "c": entry(shape=(0,), offsets=(0, 0))}, b"1234"
    )
    entries, _ = parse(file)
    start = len(file) - 4
    assert [(spec.name, spec.shape, offset) for spec, offset in entries] == [
        ("c", (0,), start), ("a", (1,), start), ("b", (0, 3), start + 4),
    ]  # fmt: skip


def test_data_order_wins_over_header_order():
    file = framed({"z": entry(offsets=(4, 8)), "a": entry(offsets=(0, 4))}, bytes(8))
    assert [spec.name for spec, _ in parse(file)[0]] == ["a", "z"]


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
dtypes = st.sampled_from([dtype for dtype in DType if dtype.bits % 8 == 0])
specs = st.lists(
    st.builds(TensorSpec, name=names, dtype=dtypes, shape=st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    max_size=6,
    unique_by=lambda spec: spec.name,
)
metadata = st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=3)


def whole_file(specs, metadata):
    header = build_header(specs, metadata)
    nbytes = sum(spec.nbytes for spec in specs)
    return header + bytes(i % 251 for i in range(nbytes))


@settings(max_examples=150, deadline=None)
@given(specs=specs, metadata=metadata)
def test_what_is_built_is_read_back_here_and_by_the_library(specs, metadata):
    file = whole_file(specs, metadata)
    header_size = header_nbytes(file[:8], len(file), "f")
    entries, found_metadata = parse(file)
    assert header_size % 4096 == 0
    assert found_metadata == metadata
    assert sorted(entry[0].name for entry in entries) == sorted(spec.name for spec in specs)
    assert [spec for spec, _ in entries if spec.nbytes] == [spec for spec in specs if spec.nbytes]
    assert_library_agrees(file, entries)


def assert_library_agrees(file, entries):
    library = dict(deserialize(file))
    assert set(library) == {spec.name for spec, _ in entries}
    for spec, offset in entries:
        info = library[spec.name]
        assert tuple(info["shape"]) == spec.shape
        assert bytes(info["data"]) == file[offset : offset + spec.nbytes]


def accepts_only_what_the_library_loads(file):
    try:
        entries, _ = parse(file)
    except CheckpointError:
        return
    assert_library_agrees(file, entries)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
@example(framed(b"{}"))
@example(framed(b'{"__metadata__":null}'))
@example(framed(b"{}\n\t "))
@example(framed(b"{}\0"))
def test_random_bytes(data):
    accepts_only_what_the_library_loads(data)
    accepts_only_what_the_library_loads(framed(b"{" + data))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs=specs, metadata=metadata, data=st.data())
def test_mutated_files(specs, metadata, data):
    file = bytearray(whole_file(specs, metadata))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(file) - 1))
        kind = data.draw(st.sampled_from(["flip", "digit", "cut", "insert", "delete"]))
        if kind == "flip":
            file[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "digit":
            file[at] = data.draw(st.sampled_from(b'0123456789-.,[]{}"e\\u'))
        elif kind == "cut":
            del file[max(at, 8) :]
        elif kind == "insert":
            file[at:at] = data.draw(st.sampled_from([b"0", b" ", b"-0", b"1", b"[", b'"a":', b"\\ud800"]))
        else:
            del file[at]
    accepts_only_what_the_library_loads(bytes(file))


# Values that a header may hold in place of any other: the structure stays JSON, the meaning breaks.
values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**65), st.floats(), st.sampled_from(["F32", "BF16", "F4", ""]),
    st.lists(st.integers(-1, 9), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(0, 4), max_size=2),
)  # fmt: skip
entries_ = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([dtype.value for dtype in DType]), values),
        "shape": st.one_of(st.lists(st.one_of(st.integers(0, 4), values), max_size=3), values),
        "data_offsets": st.one_of(st.tuples(st.integers(0, 16), st.integers(0, 16)), values),
        "more": values,
    },
)


@settings(max_examples=500, deadline=None)
@given(
    header=st.dictionaries(st.text("ab_", max_size=2), st.one_of(entries_, values), max_size=3),
    nbytes=st.integers(0, 16),
)
def test_headers_of_the_right_form_with_wrong_values(header, nbytes):
    accepts_only_what_the_library_loads(framed(header, bytes(nbytes)))


def test_building_refuses_two_tensors_of_one_name():
    spec = TensorSpec(name="a", dtype=DType.F32, shape=(1,))
    with pytest.raises(ValueError, match="'a'"):
        build_header([spec, spec], {})


def test_ninety_thousand_tensors_parse_in_seconds():
    """163 files of 558 tensors, names and shapes as in DeepSeek-V3."""
    specs = [
        TensorSpec(
            name=f"model.layers.{i // 256}.mlp.experts.{i % 256}.gate_proj.weight", dtype=DType.BF16, shape=(2048, 7168)
        )
        for i in range(558)
    ]
    header = build_header(specs, {"format": "pt"})
    nbytes = len(header) + sum(spec.nbytes for spec in specs)
    start = time.process_time()
    for _ in range(163):
        parse_header(header, nbytes, "f")
    assert time.process_time() - start < 5, "measured 1 s on a quiet core"
