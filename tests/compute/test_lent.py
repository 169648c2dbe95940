"""Arrays that kernels use without counting references to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raymerge.compute.jit import aligned, jit, lent  # first: it settles numba's cache folder  # isort: skip

from numba.core.errors import TypingError


@jit
def total(array: Any) -> Any:
    return lent(array).sum()


def test_a_lent_array_has_the_same_elements_in_the_same_shape() -> None:
    assert total(np.arange(12.0).reshape(3, 4)) == 66.0


@pytest.mark.parametrize("array", [np.arange(12.0)[::2], np.arange(12.0).reshape(3, 4).T])
def test_what_has_gaps_is_refused_instead_of_read_wrongly(array: np.ndarray) -> None:
    with pytest.raises(TypingError):
        total(array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_scratch_is_whole_and_begins_on_a_line_of_the_cache(dtype: Any) -> None:
    for size in range(1, 3000, 37):
        scratch = aligned(size, np.dtype(dtype))
        assert scratch.size == size
        assert scratch.ctypes.data % 64 == 0
