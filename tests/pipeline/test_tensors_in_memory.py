"""`raymerge.tensors` gives what a merge would write."""

from pathlib import Path

import numpy as np
import torch
from checkpoints import write_config, write_weights

import raymerge


def test_tensors_of_no_elements_and_of_no_dimensions(tmp_path: Path) -> None:
    arrays = {
        "empty.weight": np.zeros((0, 4), np.float32),
        "empty.counts": np.zeros((2, 0), np.int64),
        "scale": np.array(2.5, np.float32),
    }
    write_weights(tmp_path / "a", arrays, {"empty.weight": "F32", "empty.counts": "I64", "scale": "F32"})
    write_config(tmp_path / "a", {"num_hidden_layers": 1})
    for method in ("passthrough", "linear"):
        source = {"model": str(tmp_path / "a"), "parameters": {"weight": 1.0} if method == "linear" else {}}
        found = dict(raymerge.tensors({"merge_method": method, "models": [source]}))
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
            name: array.shape for name, array in arrays.items()
        }
        assert found["empty.counts"].dtype is torch.int64
        assert found["scale"].item() == 2.5
