"""What is freed between tensors: as much as methods keep through one stays for the next, the rest goes back."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

MASKS = 3  # of a tensor of 11M elements, a bit for each
MASK_BYTES = 11 << 17
PROBE = f"""
import resource, sys
import numpy as np
from raymerge.merging.buffers import return_freed_memory

def tensor():
    masks = [np.full({MASK_BYTES}, 1, np.uint8) for _ in range({MASKS})]
    return sum(int(mask[-1]) for mask in masks)

return_freed_memory(int(sys.argv[1]))
tensor()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    tensor()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kept_bytes: int) -> int:
    """How many pages are touched anew in ten tensors after the first, each keeping masks through its passes."""
    command = [sys.executable, "-c", PROBE, str(kept_bytes)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as the C library of Linux does it")
def test_what_a_method_keeps_through_a_tensor_is_used_again_for_the_next() -> None:
    pages = 10 * MASKS * MASK_BYTES // resource.getpagesize()
    assert page_faults(MASKS * MASK_BYTES) < pages // 20
    assert page_faults(0) > pages // 3  # else this would hold of itself
