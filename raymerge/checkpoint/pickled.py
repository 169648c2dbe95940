"""PyTorch's own weight files, `pytorch_model.bin`: where each tensor lies in them, without running their pickle.

Files since PyTorch 1.6 (2020) are zips of a pickle and one entry per storage. Older ones are four pickles and one
about what follows, then the storages one behind the other, each with its length in front. Both are described from
small reads, and their tensors are then ranges like those of a safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from math import prod
from typing import Any

from raymerge.checkpoint.header import Entry
from raymerge.checkpoint.nouns import TensorSpec
from raymerge.checkpoint.pickle_machine import (
    MAX_PICKLE_BYTES,
    DamagedPickleError,
    RefusedPickleError,
    Storage,
    StoredTensor,
    run_pickle,
)
from raymerge.checkpoint.pickle_zip import LOCAL_HEADER_BYTES, Ranges, data_start, read_directory
from raymerge.errors import CheckpointError, Problem
from raymerge.storage import is_local
from raymerge.storage.base import ObjectInfo, Store

# The pickle and the directory of 500 tensors have some 50 KB each.
_REMOTE_GUESS_BYTES = 256 * 1024
_LEGACY_GUESS_BYTES = 64 * 1024
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # the opcode that names the protocol
_LFS_POINTER = b"version "
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_LENGTH_BYTES = 8

_FOREIGN = "is not a file of torch.save: neither a zip nor the form before it"
_DAMAGED = "the file is damaged: download it again"
_UNTRUSTED = "nothing of it was run; use a safetensors copy of the model, and no tool that loads this file"
_SAVE_AGAIN = "load the model with transformers and save_pretrained it, which writes plain tensors"


def read_pickled(store: Store, info: ObjectInfo, subject: str) -> tuple[list[Entry], bytes]:
    """The tensors of a file in the order of its pickle, each with its absolute offset, and the pickle's bytes.

    Raises CheckpointError naming file (`subject`) and tensor.
    """
    ranges = Ranges(store, info, guess_bytes=0 if is_local(info.url) else _REMOTE_GUESS_BYTES)
    start = ranges.get(0, min(len(_LFS_POINTER), info.nbytes))
    if start.startswith(_LFS_POINTER):
        raise _error(subject, "is a pointer of git lfs, not the weights", "run `git lfs pull` in its folder")
    if not start.startswith((_ZIP, _PICKLE)):
        raise _error(subject, _FOREIGN, _SAVE_AGAIN)
    read = _read_zip if start.startswith(_ZIP) else _read_legacy
    try:
        return read(ranges, subject)
    except RefusedPickleError as error:
        raise _error(subject, str(error), _UNTRUSTED) from error
    except DamagedPickleError as error:
        raise _error(subject, str(error), _DAMAGED) from error


def _read_zip(ranges: Ranges, subject: str) -> tuple[list[Entry], bytes]:
    entries = read_directory(ranges, subject)

    def content(name: str, most: int) -> bytes:
        entry = entries[name]
        if entry.nbytes > most:
            raise _error(subject, f"its entry {name!a} has {entry.nbytes:,} bytes, at most {most:,} are read", "")
        slot = ranges.get(entry.header, min(entry.end, entry.header + LOCAL_HEADER_BYTES + 2 * 2**16 + most))
        start = data_start(ranges, entry, subject) - entry.header
        return slot[start : start + entry.nbytes]

    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise _error(subject, f"is a zip with {len(pickles)} data.pkl, expected that of torch.save", _SAVE_AGAIN)
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise _error(subject, "is a TorchScript program, not a file of tensors", _SAVE_AGAIN)
    if f"{folder}byteorder" in entries and content(f"{folder}byteorder", 16) != b"little":
        raise _error(subject, "was written on a big-endian machine", "save it again on a little-endian one")
    pickle = content(pickles[0], MAX_PICKLE_BYTES)
    tensors = _tensors(run_pickle(BytesIO(pickle)), subject)
    starts: dict[str, int] = {}

    def start_of(storage: Storage) -> int:
        entry = entries.get(f"{folder}data/{storage.key}")
        if entry is None:
            raise ValueError(f"lies in storage {storage.key!a}, which is not in the file")
        if storage.nbytes > entry.nbytes:
            raise ValueError(f"lies in a storage of {storage.nbytes} bytes, of which the file has {entry.nbytes}")
        if storage.key not in starts:
            starts[storage.key] = data_start(ranges, entry, subject)
        return starts[storage.key]

    return _located(tensors, start_of, subject), pickle


def _read_legacy(ranges: Ranges, subject: str) -> tuple[list[Entry], bytes]:
    nbytes = min(_LEGACY_GUESS_BYTES, ranges.nbytes)
    while True:
        stream = BytesIO(ranges.get(0, nbytes))
        try:
            state, keys = _legacy_pickles(stream, subject)
            break
        except DamagedPickleError:
            # It may only be cut: a reader that ran out of bytes has taken all of them.
            if stream.read(1) or nbytes == ranges.nbytes or nbytes >= MAX_PICKLE_BYTES:
                raise
            nbytes = min(4 * nbytes, ranges.nbytes)
    end_of_pickles = stream.tell()
    tensors = _tensors(state, subject)
    starts = _legacy_starts(tensors.values(), keys, end_of_pickles, ranges.nbytes, subject)
    pickle = ranges.get(0, end_of_pickles)
    return _located(tensors, lambda storage: starts[storage.key], subject), pickle


def _legacy_pickles(stream: BytesIO, subject: str) -> tuple[Any, list[str]]:
    if run_pickle(stream) != _LEGACY_MAGIC or run_pickle(stream) != _LEGACY_VERSION:
        raise _error(subject, _FOREIGN, _SAVE_AGAIN)
    system = run_pickle(stream)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise _error(subject, "was written on a big-endian machine", "save it again on a little-endian one")
    state, keys = run_pickle(stream), run_pickle(stream)
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise DamagedPickleError("has no list of its storages")
    return state, keys


def _legacy_starts(tensors: Any, keys: Sequence[str], position: int, file_nbytes: int, subject: str) -> dict[str, int]:
    """Where each storage's data starts. The sizes must fill the file to its last byte, which vouches for them."""
    storages: dict[str, Storage] = {}
    for tensor in tensors:
        known = storages.setdefault(tensor.storage.key, tensor.storage)
        if known != tensor.storage:
            raise _error(subject, f"its storage {known.key!a} has two sizes or types", _DAMAGED)
    if set(keys) != set(storages):
        raise _error(subject, f"lists {len(keys)} storages, its tensors name {len(storages)} others", _SAVE_AGAIN)
    starts = {}
    for key in keys:
        starts[key] = position + _LENGTH_BYTES
        position = starts[key] + storages[key].nbytes
    if position != file_nbytes:
        raise _error(subject, f"its storages end at byte {position}, the file has {file_nbytes}", _DAMAGED)
    return starts


def _tensors(state: Any, subject: str) -> Mapping[str, StoredTensor]:
    """`state` as tensors by name; anything else in it is a problem."""
    if type(state) is not dict:
        what = "one tensor" if type(state) is StoredTensor else f"a {type(state).__name__}"
        raise _error(subject, f"holds {what}, expected tensors by name", _SAVE_AGAIN)
    for name, value in state.items():
        if type(name) is str and not _is_text(name):
            raise _error(subject, f"names a tensor {name[:100]!a}, which no safetensors file can hold", _SAVE_AGAIN)
        if type(name) is not str or type(value) is not StoredTensor:
            message = f"holds a {type(value).__name__} under {str(name)[:100]!a}, expected tensors by name only"
            remedy = "save the model's state_dict alone, not a training checkpoint"
            raise _error(subject, message, remedy)
    return state


def _is_text(name: str) -> bool:
    """Whether a safetensors header can hold the name; pickles may carry lone surrogates."""
    return name != "__metadata__" and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _located(tensors: Mapping[str, StoredTensor], start_of: Callable[[Storage], int], subject: str) -> list[Entry]:
    """Every tensor as a range; those that are none are refused together."""
    entries: list[Entry] = []
    problems = []
    for name, tensor in tensors.items():
        try:
            _check_extent(tensor)
            offset = start_of(tensor.storage) + tensor.offset * tensor.dtype.bits // 8
        except ValueError as error:
            problems.append(Problem(subject=f"{subject}: tensor {name!a}", message=str(error), remedy=_SAVE_AGAIN))
            continue
        entries.append((TensorSpec(name=name, dtype=tensor.dtype, shape=tensor.shape), offset))
    if problems:
        raise CheckpointError(*problems)
    return entries


def _check_extent(tensor: StoredTensor) -> None:
    """Raise ValueError unless the tensor is one run of elements inside its storage."""
    shape = list(tensor.shape)
    end = (tensor.offset + prod(shape)) * tensor.dtype.bits // 8
    if not _is_contiguous(tensor):
        raise ValueError(f"shape {shape} with strides {list(tensor.stride)} is a view, not one run of elements")
    if end > tensor.storage.nbytes:
        raise ValueError(
            f"shape {shape} from element {tensor.offset} overruns its storage of {tensor.storage.nbytes} bytes"
        )


def _is_contiguous(tensor: StoredTensor) -> bool:
    if 0 in tensor.shape:
        return True
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _error(subject: str, message: str, remedy: str) -> CheckpointError:
    return CheckpointError(Problem(subject=subject, message=message, remedy=remedy))
