"""Methods that work in place get long blocks of stored elements: what they hold must not grow with those."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from method_harness import bf16_models, encode_bf16

from raymerge.checkpoint.nouns import SourceFile, TensorRef, TensorSpec
from raymerge.compute import open_operations
from raymerge.dtypes import DType
from raymerge.merging.tensor import merge_held, whole
from raymerge.methods import Base, all_methods, method
from raymerge.planning.memory import BLOCK_ELEMENTS
from raymerge.planning.nouns import JobInput, TensorJob

IN_PLACE = sorted(name for name, each in all_methods().items() if each.in_place)
SHAPE = (1024, 1024)  # one long block
COUNT = SHAPE[0] * SHAPE[1]


def job_of(name: str) -> TensorJob:
    declared = method(name)
    spec = TensorSpec(name="w", dtype=DType.BF16, shape=SHAPE)
    refs = [
        TensorRef(spec=spec, file=SourceFile(url=f"/{i}", nbytes=0, version="v", identity=str(i)), offset=0)
        for i in range(3)
    ]
    values = {p.name: declared.example.get(p.name, p.default) for p in declared.parameters}
    per_input = [p.name for p in declared.parameters if p.per_input]
    inputs = refs[1:] if declared.base is Base.REQUIRED else refs[:2]
    each = [
        {key: values[key][i] if isinstance(values[key], list) else values[key] for key in per_input} for i in range(2)
    ]
    return TensorJob(
        output=spec,
        method=name,
        inputs=tuple(JobInput(ref=ref, parameters=given) for ref, given in zip(inputs, each, strict=True)),
        base=refs[0] if declared.base is Base.REQUIRED else None,
        parameters={key: value for key, value in values.items() if key not in per_input},
        slots=(0, 1),
    )


@pytest.mark.parametrize("name", IN_PLACE)
def test_no_floats_as_many_as_a_long_block_has(name: str) -> None:
    job, operations = job_of(name), open_operations("cpu")
    models, base = bf16_models(2, SHAPE)
    stored = [encode_bf16(each).reshape(-1).view(np.uint8) for each in (base, *models)][: len(job.refs)]
    out = np.empty(2 * COUNT, np.uint8)
    merge_held(job, stored, whole(job, out), operations, BLOCK_ELEMENTS)  # compiles
    expected = out.tobytes()
    tracemalloc.start()
    try:
        merge_held(job, stored, whole(job, out), operations, BLOCK_ELEMENTS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * COUNT
    for device, block in (("cpu", BLOCK_ELEMENTS // 8), ("torch:cpu", BLOCK_ELEMENTS)):
        merge_held(job, stored, whole(job, out), open_operations(device), block)
        assert out.tobytes() == expected


def test_most_methods_with_cheap_combines_work_in_place() -> None:
    assert {"linear", "task_arithmetic", "slerp", "dare_ties", "della"} <= set(IN_PLACE)
