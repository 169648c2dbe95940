"""PyTorch's own weight files: twins of safetensors folders, and pickles assembled by hand."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from checkpoints import read_header


def pickle_twin(folder: Path, out: Path, **options: Any) -> Path:
    """The model of `folder` as torch.save writes it, file for file; `options` are torch.save's."""
    import torch
    from safetensors.torch import load_file

    out.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            offsets = {name: entry.get("data_offsets") for name, entry in read_header(path).items()}
            loaded = load_file(path)
            state = OrderedDict((name, loaded[name]) for name in sorted(loaded, key=lambda name: offsets[name]))
            with warnings.catch_warnings(action="ignore"):
                torch.save(state, out / twin_name(path.name), **options)
        elif path.name.endswith(".index.json"):
            index = json.loads(path.read_text())
            index["weight_map"] = {name: twin_name(file) for name, file in index["weight_map"].items()}
            (out / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        else:
            (out / path.name).write_bytes(path.read_bytes())
    return out


def twin_name(name: str) -> str:
    return name.replace("model", "pytorch_model").replace(".safetensors", ".bin")


def write_zip(
    path: Path,
    pickle: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    folder: str = "archive",
    **others: bytes,
) -> Path:
    """A zip around any pickle; `others` are further entries of its folder."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", pickle)
        for name, data in {**{f"data/{key}": data for key, data in (storages or {}).items()}, **others}.items():
            archive.writestr(f"{folder}/{name}", data)
    return path


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor_code(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    offset: int = 0,
    storage: str = "FloatStorage",
    key: str = "0",
    count: int = 6,
) -> bytes:
    """The opcodes that leave one tensor on the stack, as torch.save writes them."""
    place = b"(" + text("storage") + named("torch", storage) + text(key) + text("cpu") + integer(count) + b"tQ"
    hooks = named("collections", "OrderedDict") + b")R"
    return (
        named("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + place
        + integer(offset)
        + sizes(shape)
        + sizes(stride)
        + b"\x89"
        + hooks
        + b"tR"
    )


def state_code(**tensors: bytes) -> bytes:
    """A pickle of a dict by name."""
    items = b"".join(text(name) + code for name, code in tensors.items())
    return b"\x80\x02}(" + items + b"u."
