"""Safetensors headers, read strictly and written deterministically.

The format: 8 bytes of little-endian header length, a JSON object that maps each tensor's name to its dtype, shape and
`data_offsets` (begin and end, counted from the end of the header), then the data without holes. What the safetensors
library rejects is rejected here too, and so are duplicate names, which it accepts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from raymerge.checkpoint.nouns import TensorSpec
from raymerge.dtypes import DType
from raymerge.errors import CheckpointError, Problem

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit (safetensors README, "Format")
_BLOCK_BYTES = 4096  # data starts on a multiple of this: tensors of whole blocks can be written as they lie, and mapped
_METADATA = "__metadata__"
_LFS_POINTER = b"version "  # read as a header length, 2.3e18
_LARGEST = 2**64 - 1  # sizes are unsigned 64-bit integers in the reference implementation
_DTYPES = {dtype.value: dtype for dtype in DType}
_MAYBE_NEGATIVE_ZERO = re.compile(rb"[\[,:\s]-0")

Entry = tuple[TensorSpec, int]


def header_nbytes(prefix: bytes, file_nbytes: int, file_name: str) -> int:
    """Bytes before the tensor data, the length prefix included, from the first 8 bytes of a file of `file_nbytes`."""
    if file_nbytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        _refuse(file_name, f"has {file_nbytes} bytes, too few for a safetensors header", _DAMAGED)
    if prefix.startswith(_LFS_POINTER):
        _refuse(file_name, "is a pointer of git lfs, not the weights", "run `git lfs pull` in its folder")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        _refuse(
            file_name,
            f"claims a header of {length} bytes, the format allows {MAX_HEADER_BYTES}; not a safetensors file",
            _DAMAGED,
        )
    if length > file_nbytes - LENGTH_BYTES:
        _refuse(file_name, f"claims a header of {length} bytes but has {file_nbytes} in all", _DAMAGED)
    return LENGTH_BYTES + length


def parse_header(prefix: bytes, file_nbytes: int, file_name: str) -> tuple[list[Entry], dict[str, str]]:
    """The tensors of a file in data order, each with its absolute offset, and the file's metadata.

    `prefix` is the start of the file, at least `header_nbytes` long. Raises CheckpointError naming file and tensor.
    """
    data_start = header_nbytes(prefix, file_nbytes, file_name)
    assert len(prefix) >= data_start
    header = _load(bytes(prefix[LENGTH_BYTES:data_start]), file_name)
    metadata = _metadata(header.pop(_METADATA, None), file_name)
    spans = [_span(name, value, file_name) for name, value in header.items()]
    spans.sort(key=_offsets)
    _check_layout(spans, file_nbytes - data_start, file_name)
    return [(spec, data_start + begin) for begin, _, spec in spans], metadata


def build_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length prefix and JSON of a file that holds `specs` in this order, padded with spaces to whole blocks of a disk.

    The same arguments give the same bytes; metadata is sorted by key. Raises ValueError for two tensors of one name.
    """
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = dict(sorted(metadata.items()))
    begin = 0
    for spec in specs:
        if spec.name in header or spec.name == _METADATA:
            raise ValueError(f"tensor {spec.name!r} cannot be written: the name is taken in this file")
        end = begin + spec.nbytes
        header[spec.name] = {"dtype": spec.dtype.value, "shape": spec.shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % _BLOCK_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


_DAMAGED = "download or convert the file again"
_TRUNCATED = "the file is truncated: download it again"


def _load(header: bytes, file_name: str) -> dict[str, Any]:
    if not header.startswith(b"{"):
        _refuse(file_name, "is not a safetensors file: its header does not start with '{'", _DAMAGED)
    parse_int = _strict_int if _MAYBE_NEGATIVE_ZERO.search(header) else None
    try:
        text = header.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_int=parse_int, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # an escaped lone surrogate is no text
    except _DuplicateError as error:
        _refuse(file_name, f"its header holds {error.args[0]!r} twice", _DAMAGED)
    except RecursionError:
        _refuse(file_name, "its header is nested too deeply", _DAMAGED)
    except ValueError as error:  # includes JSON and Unicode errors
        _refuse(file_name, f"its header is not valid JSON ({error})", _DAMAGED)
    assert isinstance(value, dict)
    return value


class _DuplicateError(Exception):
    """A JSON object names one key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        raise _DuplicateError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return value


def _strict_int(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is not an unsigned integer")
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _metadata(value: object, file_name: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(file_name, f"{_METADATA} is {_kind(value)}, expected an object of strings", _DAMAGED)
    for key, item in value.items():
        if not isinstance(item, str):
            _refuse(file_name, f"{_METADATA}[{key!r}] is {_kind(item)}, expected a string", _DAMAGED)
    return value


Span = tuple[int, int, TensorSpec]


def _offsets(span: Span) -> tuple[int, int]:
    return span[0], span[1]


def _span(name: str, value: object, file_name: str) -> Span:
    # One of these runs per tensor: 91,000 of them in a DeepSeek-V3 checkpoint. The common case takes a single pass.
    try:
        code, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[index]
        spec = TensorSpec(name=name, dtype=_DTYPES[code], shape=tuple(shape))
        sizes = (begin, end, *shape)
        fits = (
            len(value) == 3  # type: ignore[arg-type]
            and type(value["data_offsets"]) is list  # type: ignore[index]
            and type(shape) is list
            and all(type(size) is int for size in sizes)
            and min(sizes) >= 0
            and (end - begin) * 8 == spec.element_count * spec.dtype.bits
            and (end > begin or not _overflows(sizes))
        )
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        _refuse(file_name, f"tensor {name!r}: {_entry_fault(value)}", _DAMAGED)
    return begin, end, spec


def _overflows(sizes: tuple[int, ...]) -> bool:
    """Whether the product of a zero-size shape overflows on the way, as the reference implementation multiplies."""
    product = 1
    for size in sizes[2:]:
        product *= size
        if product > _LARGEST or size > _LARGEST:
            return True
    return max(sizes[:2]) > _LARGEST


def _entry_fault(value: object) -> str:
    """What is wrong with a tensor's entry that did not pass."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        return "its entry must hold dtype, shape and data_offsets, and nothing else"
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        return f"unknown dtype {code!r}"
    if not _is_sizes(shape):
        return f"shape {shape!r} is not a list of sizes"
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {offsets!r} are not a begin and an end"
    begin, end = offsets
    return f"data_offsets [{begin}, {end}] hold {end - begin} bytes, which is not {code} of shape {shape}"


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _LARGEST for size in value)


def _check_layout(spans: list[Span], data_nbytes: int, file_name: str) -> None:
    """Refuse holes, overlaps, and data that is more or less than what the file has."""
    position = 0
    previous = ""
    for begin, end, spec in spans:
        if begin != position:
            fault = "overlaps" if begin < position else f"leaves {begin - position} unused bytes after"
            neighbour = f"tensor {previous!r}" if previous else "the header"
            _refuse(file_name, f"tensor {spec.name!r} at byte {begin} of the data {fault} {neighbour}", _DAMAGED)
        if end > data_nbytes:
            _refuse(file_name, f"tensor {spec.name!r} ends at byte {end} of {data_nbytes} bytes of data", _TRUNCATED)
        position, previous = end, spec.name
    if position != data_nbytes:
        _refuse(file_name, f"has {data_nbytes - position} bytes after its last tensor", _DAMAGED)


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _refuse(file_name: str, message: str, remedy: str) -> NoReturn:
    raise CheckpointError(Problem(subject=file_name, message=message, remedy=remedy))
