"""Arrays that kernels use without counting references to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raymerge.compute.jit import jit, lent  # first: it settles numba's cache folder  # isort: skip

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
