"""Trimming over the whole model: one threshold for each input, found by counting magnitudes over all tensors.

TIES-Merging (arXiv 2306.01708) keeps the largest changes of a model; most recipes expect those of each tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from raymerge.compute.selection import Threshold, kept_count
from raymerge.methods.declaration import Parameter
from raymerge.methods.survey import Answers, Question, Rounds, Survey, SurveyedTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from raymerge.methods.inputs import Inputs

MODEL = "model"
TRIM_SCOPE = Parameter(
    name="trim_scope",
    kind=str,
    default="tensor",
    choices=("tensor", MODEL),
    help="keep the largest changes of each tensor, or of the whole model",
)
_THRESHOLD = "threshold"
_BIN_BITS = 16  # tables of 65,536 entries: two rounds for the 31 bits of a float32 magnitude, four for float64


def given_thresholds(inputs: Inputs) -> dict[int, Threshold] | None:
    """By input, where the whole model's first phase says that it ends; None where each tensor has its own.

    An input that is not named keeps all of its changes, or none, as its density says.
    """
    if inputs.shared.get(TRIM_SCOPE.name) != MODEL:
        return None
    given = {i: values[_THRESHOLD] for i, values in enumerate(inputs.each)}
    return {i: threshold for i, threshold in given.items() if threshold is not None}


def _check(tensors: Sequence[SurveyedTensor], labels: Sequence[str]) -> str | None:
    for i, label in enumerate(labels):
        found = sorted({tensor.each[i]["density"] for tensor in tensors})
        if len(found) > 1:
            return f"takes one density for each model; that of {label} goes from {found[0]:g} to {found[-1]:g}"
    if len({tensor.is_wide for tensor in tensors}) > 1:
        return "takes tensors that are all float64 or all narrower, so that one table counts their magnitudes"
    return None


def _passes(tensors: Sequence[SurveyedTensor]) -> int:
    return len(_shifts(tensors)) if _searches(tensors) else 0


def _rounds(tensors: Sequence[SurveyedTensor]) -> Rounds:
    """Narrow every input's threshold down to one bit pattern, then deal out the elements that are equal to it."""
    searches = _searches(tensors)
    tasks: dict[int, list[int]] = {}
    for index, tensor in enumerate(tensors):
        tasks.setdefault(tensor.task, []).append(index)
    answers: Answers = {}
    for shift in _shifts(tensors) if searches else ():
        answers = yield Question(details=tuple(search.question(shift) for search in searches))
        for row, search in enumerate(searches):
            search.narrow(shift, sum(answers[task].array()[row] for task in tasks))
    found: list[list[dict[str, Any]]] = [[{_THRESHOLD: None} for _ in tensor.each] for tensor in tensors]
    shares = [_deal(search, answers, row, tasks) for row, search in enumerate(searches)]
    split = tuple(task for task in tasks if any(0 < share[task].keep_equal < share[task].equal for share in shares))
    inside: Answers = {}
    if split:  # tasks that hold a last equal element to keep, and a next one to drop: which of their tensors do?
        details = tuple(search.question_of_equals() for search in searches)
        inside = yield Question(details=details, each_tensor=True, tasks=split)
    for row, (search, share) in enumerate(zip(searches, shares, strict=True)):
        for task, members in tasks.items():
            equals = [int(count) for count in inside[task].array()[:, row, 0]] if task in inside else None
            for index, threshold in zip(members, _among(share[task], equals, len(members)), strict=True):
                found[index][search.input_index] = {_THRESHOLD: threshold}
    return found


def _observe(inputs: Inputs, details: Any) -> NDArray[Any]:
    """For each question (input, lowest pattern, shift, entries) a table, its last entry for what lies above."""
    import numpy as np

    tables = [inputs.operations.empty_counts(bins, inputs.element_count) for _, _, _, bins in details]
    for block in inputs.scan_to_count():
        for (i, low, shift, _), table in zip(details, tables, strict=True):
            block.operations.count_magnitudes(block.x[i], block.base, table, low=low, shift=shift)
    return np.stack([inputs.operations.read_counts(table) for table in tables]).astype(np.int64)


WHOLE_MODEL = Survey(
    setting=f"{TRIM_SCOPE.name}: {MODEL}",
    applies=lambda shared: shared[TRIM_SCOPE.name] == MODEL,
    check=_check,
    rounds=_rounds,
    observe=_observe,
    passes=_passes,
)


class _Search:
    """The bit pattern that the magnitude of one rank has among all tensors, narrowed by every round."""

    def __init__(self, input_index: int, rank: int, bits: int) -> None:
        self.input_index = input_index
        self._rank = rank  # from the largest, at 1
        self._bits = bits
        self._low = 0
        self._size = 1 << bits
        self.entry = 0  # in the last table
        self.keep_equal = 0

    def question(self, shift: int) -> tuple[int, int, int, int]:
        return self.input_index, self._low, shift, self._size >> shift

    def question_of_equals(self) -> tuple[int, int, int, int]:
        return self.input_index, self._low, 0, 1

    def narrow(self, shift: int, counts: NDArray[Any]) -> None:
        from_the_top = counts[::-1].cumsum()  # what lies above the interval first
        place = int(from_the_top.searchsorted(self._rank))
        self.entry = len(counts) - 1 - place
        self.keep_equal = self._rank - int(from_the_top[place - 1])
        self._low += self.entry << shift
        self._size = 1 << shift

    @property
    def value(self) -> float:
        code, word = ("<f", "<I") if self._bits < 32 else ("<d", "<Q")
        value: float = struct.unpack(code, struct.pack(word, self._low))[0]
        return value


def _searches(tensors: Sequence[SurveyedTensor]) -> list[_Search]:
    """One for every input that keeps some of its changes, and not all."""
    total = sum(tensor.element_count for tensor in tensors)
    ranks = [kept_count(values["density"], total) for values in tensors[0].each]
    bits = 63 if tensors[0].is_wide else 31
    return [_Search(i, rank, bits) for i, rank in enumerate(ranks) if 0 < rank < total]


def _shifts(tensors: Sequence[SurveyedTensor]) -> list[int]:
    """Of each round: the patterns in an entry of its tables, as a power of 2."""
    shifts = [63 if tensors[0].is_wide else 31]
    while shifts[-1]:
        shifts.append(max(0, shifts[-1] - _BIN_BITS))
    return shifts[1:]


def _deal(search: _Search, answers: Answers, row: int, tasks: Iterable[int]) -> dict[int, Threshold]:
    """What each task keeps of the equal elements that it holds: the first tasks theirs, until none is left to keep."""
    equals = [int(answers[task].array()[row, search.entry]) for task in tasks]
    return dict(zip(tasks, _thresholds(search.value, search.keep_equal, equals), strict=True))


def _among(share: Threshold, equals: Sequence[int] | None, count: int) -> Sequence[Threshold]:
    """A task's share for each of its tensors; where it keeps all or none of the equal elements, so do they."""
    return [share] * count if equals is None else _thresholds(share.value, share.keep_equal, equals)


def _thresholds(value: float, keep: int, equals: Sequence[int]) -> list[Threshold]:
    before = [0, *accumulate(equals)]
    return [
        Threshold(value=value, keep_equal=min(held, max(0, keep - first)), equal=held)
        for first, held in zip(before, equals, strict=False)
    ]
