"""First phases are open to any method: tasks answer with counts, and what follows comes as per-input parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import read_tensors, write_llama
from merges import folder_digest

import raymerge
from raymerge.methods import all_methods, declaration, extension

# Scales each model by the share of its entries that are above 0, over the whole model and in each tensor's task.
METHOD = """\
import numpy as np
import raymerge
from raymerge.methods.survey import Question, Survey


def rounds(tensors):
    answers = yield Question(details="all")
    again = yield Question(details="last", each_tensor=True, tasks=(max(answers),))
    total = sum(tensor.element_count for tensor in tensors)
    positive = sum(answer.array() for answer in answers.values())
    last = again[max(answers)].array()
    assert last.sum(axis=0).tolist() == answers[max(answers)].array().tolist()
    assert len(last) == sum(tensor.task == max(answers) for tensor in tensors)
    return [[{"share": int(count) / total} for count in positive] for _ in tensors]


def observe(inputs, details):
    assert details in ("all", "last")
    return np.array([sum(int((block.x[i] > 0).sum()) for block in inputs.scan()) for i in range(inputs.count)])


SURVEY = Survey(setting="by_share", applies=lambda shared: shared["by_share"], check=lambda tensors, labels: None,
                rounds=rounds, observe=observe, passes=lambda tensors: 1)


@raymerge.merge_method(
    "by_share", summary="sum by share", formula="sum s_i x_i", source="a test", survey=SURVEY,
    parameters=(raymerge.Parameter(name="by_share", kind=bool, default=True, help="ask"),))
def by_share(inputs):
    shares = inputs.parameter("share")
    return lambda block: block.operations.weighted_sum(shares, block.x)
"""


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    all_methods()
    methods, files = dict(declaration._REGISTRY), dict(extension._files)
    yield
    declaration._REGISTRY.clear()
    declaration._REGISTRY.update(methods)
    for module in extension._files.keys() - files.keys():
        sys.modules.pop(module)
        del extension._files[module]


def test_a_method_of_a_file_asks_the_whole_model(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed=seed)
    (tmp_path / "mine.py").write_text(METHOD)
    config = {
        "merge_method": "by_share",
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
        "dtype": "float32",
    }
    options = {"methods": (str(tmp_path / "mine.py"),), "out_shard_size": "40KB"}
    raymerge.merge(config, tmp_path / "inline", executor="inline", **options)
    stored = [read_tensors(tmp_path / name) for name in "ab"]
    shares = [
        sum(int((array > 0).sum()) for array in each.values()) / sum(array.size for array in each.values())
        for each in stored
    ]
    for name, tensor in read_tensors(tmp_path / "inline").items():
        exact = sum(share * each[name].astype(np.float64) for share, each in zip(shares, stored, strict=True))
        np.testing.assert_allclose(tensor, exact, rtol=1e-6, atol=1e-9)
    raymerge.merge(config, tmp_path / "ray", **options)
    assert folder_digest(tmp_path / "ray") == folder_digest(tmp_path / "inline")
