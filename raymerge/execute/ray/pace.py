"""How long tasks take, and what follows: which cannot end before their node goes, which are worth a second attempt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

# A second attempt reads everything again, so it is for tasks that clearly hang: a slow disk, a throttled or dying host.
STRAGGLER_FACTOR = 3.0
STRAGGLER_SECONDS = 20.0
# At most this share of all tasks, and always one, gets a second attempt.
SECOND_ATTEMPTS_SHARE = 0.05
# A stopped task aborts its upload or removes its file, which takes a moment.
LEAVING_SECONDS = 2.0


@dataclass(slots=True, kw_only=True)
class Pace:
    """What finished tasks say of those that run. The tasks of a plan are of about one size."""

    task_count: int
    straggler_seconds: float = STRAGGLER_SECONDS
    clock: Callable[[], float] = time.time
    _finished: list[float] = field(default_factory=list)
    _second_attempts: int = 0

    def note(self, seconds: float) -> None:
        self._finished.append(seconds)

    def ends_before(self, deadline: float, *, started_at: float) -> bool:
        """Whether a task may end in time: of stragglers, and before any task has ended, nothing is known."""
        if not self._finished:
            return True
        expected_end = started_at + median(self._finished)
        return expected_end + LEAVING_SECONDS <= deadline or expected_end <= self.clock()

    def allows_second_attempt(self, *, started_at: float) -> bool:
        """Whether a task has run for so long, and few enough have been tried twice. The caller then counts on it."""
        if not self._finished or self._second_attempts >= max(1, int(self.task_count * SECOND_ATTEMPTS_SHARE)):
            return False
        age = self.clock() - started_at
        if age < max(self.straggler_seconds, STRAGGLER_FACTOR * median(self._finished)):
            return False
        self._second_attempts += 1
        return True
