"""First phases: what a method asks of a whole model before it merges any tensor of it.

The driver asks, a round at a time; tasks look at tensors and answer with small tables of counts; what the driver
concludes is handed to the jobs of the second phase as per-input parameters.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from raymerge.methods.declaration import Values
    from raymerge.methods.inputs import Inputs

_COMPRESSION_LEVEL = 1  # tables of counts are mostly zeros and small numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One round. `details` go to the survey's `observe` as they are, for each tensor of each task.

    A task answers with the sum of its tensors' arrays, with `each_tensor` with all of them, stacked. `tasks` are the
    positions of the tasks that are asked; None asks all.
    """

    details: Any
    each_tensor: bool = False
    tasks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One task's array of int64 counts, packed."""

    data: bytes
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Answer:
        return cls(data=zlib.compress(array.astype("<i8").tobytes(), _COMPRESSION_LEVEL), shape=array.shape)

    def array(self) -> NDArray[Any]:
        import numpy as np

        return np.frombuffer(zlib.decompress(self.data), "<i8").reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedTensor:
    """A tensor that a survey looks at: the position of its task, its size, and its parameters, input by input."""

    task: int
    element_count: int
    is_wide: bool  # float64 blocks
    each: tuple[Values, ...]


Answers = Mapping[int, Answer]  # by position of the task
Rounds = Generator[Question, Answers, Sequence[Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A first phase. Tensors come in the model's order, tasks in the order of their tensors.

    `setting` is what asks for it in a recipe, as messages name it; `applies` says by its shared values whether a tensor
    takes part. `check`, given the tensors and the inputs' names,
    says what makes the survey impossible, or None. `rounds` asks and concludes: for each tensor and input, the
    parameters to add. `observe` looks at one tensor. `passes` is how often the tensors are read, as a rule.
    """

    setting: str
    applies: Callable[[Values], bool]
    check: Callable[[Sequence[SurveyedTensor], Sequence[str]], str | None]
    rounds: Callable[[Sequence[SurveyedTensor]], Rounds]
    observe: Callable[[Inputs, Any], NDArray[Any]]
    passes: Callable[[Sequence[SurveyedTensor]], int]
