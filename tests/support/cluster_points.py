"""A pytest plugin: a line for each thing that tests marked `point(number, what)` show, with the figures they record.

PYTHONPATH=tests/support python -m pytest -p cluster_points -m "point or cluster"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

_KEY = "point"


@dataclass
class _Line:
    outcomes: Counter[str] = field(default_factory=Counter)
    figures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return "; ".join([counts, *self.figures])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    mark = item.get_closest_marker("point")
    if mark is not None:
        outcome.get_result().user_properties.append((_KEY, mark.args))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines: dict[tuple[int, str], _Line] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(report.user_properties)
            if _KEY not in properties:
                continue
            line = lines.setdefault(properties[_KEY], _Line())
            line.outcomes[outcome] += 1
            line.figures += [str(value) for name, value in report.user_properties if name == "figure"]
    terminalreporter.section("what was shown")
    for (number, what), line in sorted(lines.items(), key=lambda each: each[0]):
        terminalreporter.line(f"point {number}  {what}: {line}")
