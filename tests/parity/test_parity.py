"""raymerge against two witnesses for every golden recipe: the peer's recorded output and the float64 oracle.

Where the two witnesses part, the case says why and the oracle decides.
"""

from __future__ import annotations

import numpy as np
import pytest
from golden.table import CASES, expected, stride_of
from parity.comparison import correctly_rounded, count_beyond, relative_error, round_to

from raymerge.errors import RaymergeError

# entries whose rank decides may swap where float32 rounding makes or breaks a tie at the threshold
THRESHOLD_METHODS = {"ties", "breadcrumbs", "breadcrumbs_ties", "sce", "arcee_fusion", "ram", "ramplus_tl"}
TIES_ALLOWED = 2 / 10_000
COMPARED = [name for name, case in CASES.items() if not case.crashes and not case.differs]
DIFFERENT = [name for name, case in CASES.items() if case.differs and not case.refused]
CRASHING = [name for name, case in CASES.items() if case.crashes]


def sample(case, tensor):
    """The elements of a tensor that the golden file holds."""
    flat = tensor.reshape(-1)
    return flat[:: stride_of(case, flat.size)]


def tolerance_of(case, dtype):
    if case.tolerance is not None:
        return case.tolerance
    return {"BF16": 2.0**-7, "F16": 2.0**-10}.get(dtype, 1e-5)  # one step of the largest element


def disagreement(case, ours):
    """Elements too far from the peer's output, elements compared, and a line on the worst tensor."""
    wanted, entry = expected(case)
    beyond = total = 0
    worst = (0.0, "")
    for name, values in wanted.items():
        mine = sample(case, ours[name])
        dtype = entry["tensors"][name][0]
        mine = round_to(mine.astype(np.float64), dtype)
        beyond += count_beyond(mine, values, tolerance_of(case, dtype))
        total += values.size
        worst = max(worst, (relative_error(mine, values), name))
    return beyond, total, f"{beyond} of {total} elements differ; worst {worst[1]}: {worst[0]:.2e}"


def allowed(case, total):
    return int(TIES_ALLOWED * total) if case.method in THRESHOLD_METHODS else 0


@pytest.mark.parametrize("name", COMPARED)
def test_merge_equals_the_peer(name, merged):
    case, ours = CASES[name], merged(name)
    wanted, entry = expected(case)
    assert sorted(ours.tensors) == sorted(wanted)
    assert ours.dtypes == {tensor: dtype for tensor, (dtype, *_) in entry["tensors"].items()}
    assert {tensor: list(values.shape) for tensor, values in ours.tensors.items()} == {
        tensor: shape for tensor, (_, *shape) in entry["tensors"].items()
    }
    beyond, total, line = disagreement(case, ours.tensors)
    assert beyond <= allowed(case, total), line


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_merge_equals_the_oracle(name, merged, exact):
    case, ours, wanted = CASES[name], merged(name), exact(name)
    assert sorted(ours.tensors) == sorted(wanted)
    beyond = wrongly_rounded = total = 0
    for tensor, values in wanted.items():
        mine, dtype = ours.tensors[tensor], ours.dtypes[tensor]
        beyond += count_beyond(mine, round_to(values, dtype), tolerance_of(case, dtype))
        if dtype in ("BF16", "F16"):
            wrongly_rounded += int(np.count_nonzero(~correctly_rounded(mine, values, dtype)))
        total += values.size
    assert beyond <= allowed(case, total), f"{beyond} of {total} elements differ"
    assert wrongly_rounded <= total // 1000, f"{wrongly_rounded} of {total} elements are not correctly rounded"


@pytest.mark.parametrize("name", COMPARED)
def test_oracle_equals_the_peer(name, exact):
    case = CASES[name]
    beyond, total, line = disagreement(case, exact(name))
    assert beyond <= allowed(case, total), line


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_recorded_difference_is_still_one(name, exact):
    case = CASES[name]
    beyond, total, _ = disagreement(case, exact(name))
    assert beyond > allowed(case, total), f"no longer differs, drop the reason: {case.differs}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_what_cannot_be_merged_is_refused(name, merged):
    with pytest.raises(RaymergeError):
        merged(name)


@pytest.mark.parametrize("name", CRASHING)
def test_a_recorded_crash_is_still_one(name):
    case = CASES[name]
    assert case.crashes in expected(case)[1]["failed"]
