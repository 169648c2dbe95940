"""How little --task-memory may be, and what is said below that."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from planning import checkpoint, llama_names, plan_of

from raymerge.checkpoint.nouns import SourceFile, TensorRef, TensorSpec
from raymerge.dtypes import DType
from raymerge.errors import PlanError
from raymerge.methods import all_methods
from raymerge.methods.declaration import Base
from raymerge.methods.sparsify import MOST_MASK_BYTES
from raymerge.planning.memory import FLOOR_BYTES, MIB, MemoryRules, project
from raymerge.planning.nouns import JobInput, TensorJob

S3_UPLOAD_BYTES = 64 * MIB
RECIPE = """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 1, density: 0.5}}
  - {model: b, parameters: {weight: 1, density: 0.5}}
"""


def needed_mib(rules: MemoryRules) -> int | None:
    """What the refusal of a plan says is needed; None where the plan is accepted."""
    shapes = llama_names(2, hidden=2048, inner=4096, vocab=30_000)
    try:
        plan_of(RECIPE, *(checkpoint(name, shapes) for name in ("base", "a", "b")), memory=rules)
    except PlanError as error:
        found = [int(re.search(r"set --task-memory (\d+)MiB", each.remedy)[1]) for each in error.problems]
        return max(found)
    return None


@pytest.mark.parametrize("threads", [1, 4])
def test_what_the_refusal_names_is_accepted_and_less_is_not(threads: int) -> None:
    rules = MemoryRules(budget_bytes=MIB, threads=threads, upload_bytes=S3_UPLOAD_BYTES)
    least = needed_mib(rules)
    assert least is not None
    assert needed_mib(replace(rules, budget_bytes=least * MIB)) is None
    assert needed_mib(replace(rules, budget_bytes=(least - 1) * MIB)) == least


@pytest.mark.parametrize(("budget_bytes", "told"), [(10**6, "0.9537"), (MIB, "1"), (100 * MIB // 8, "12.5")])
def test_the_refusal_tells_the_memory_as_given(budget_bytes: int, told: str) -> None:
    models = (checkpoint(name, llama_names(2)) for name in ("base", "a", "b"))
    with pytest.raises(PlanError, match=rf"the task memory is {re.escape(told)} MiB"):
        plan_of(RECIPE, *models, memory=MemoryRules(budget_bytes=budget_bytes))


@pytest.mark.parametrize("method", sorted(all_methods()))
@pytest.mark.parametrize(
    "shape",
    [
        (128_256, 16_384),
        (1_000_000_000, 1),
        (16_000, 131_072),
        pytest.param((8 * MOST_MASK_BYTES // 4 // 4_096, 4_096), id="most-masks-kept"),  # a bit each, of four inputs
    ],
)
def test_every_method_merges_four_models_at_the_stated_floor(method: str, shape: tuple[int, ...]) -> None:
    declared = all_methods()[method]
    count = min(4, declared.max_inputs or 4)
    refs = [
        TensorRef(
            spec=TensorSpec(name="w", dtype=DType.F32, shape=shape),
            file=SourceFile(url=f"/{i}", nbytes=0, version="", identity=""),
            offset=0,
        )
        for i in range(count + 1)
    ]
    values = {each.name: each.default for each in declared.parameters} | {"filter_wise": True, "nuslerp_flatten": False}
    job = TensorJob(
        output=refs[0].spec,
        method=method,
        inputs=tuple(JobInput(ref=ref) for ref in refs[1:]),
        base=refs[0] if declared.base in (Base.REQUIRED, Base.OPTIONAL) else None,
        parameters=values,
    )
    rules = MemoryRules(budget_bytes=FLOOR_BYTES, upload_bytes=S3_UPLOAD_BYTES)
    if method == "arcee_fusion" and shape[1] == 1:
        pytest.skip("keeps a number for every row")
    assert project((job,), rules).total_bytes <= FLOOR_BYTES
