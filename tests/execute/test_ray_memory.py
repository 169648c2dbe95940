"""Ray's memory monitor kills what outgrows a node: such a task gets more room, and is given up at last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MEMINFO = Path("/proc/meminfo")
GIB = 2**30


def outgrow(share_bytes: int, task_bytes: int, task_count: int) -> dict[str, object]:
    """Run tasks that hold `task_bytes` each on a Ray whose monitor lets all of them together have `share_bytes`."""
    meminfo = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in MEMINFO.read_text().splitlines()}
    used = meminfo["MemTotal"] - meminfo["MemAvailable"]
    if meminfo["MemAvailable"] < share_bytes + task_bytes * task_count:
        pytest.skip("needs more free memory")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "RAY_memory_usage_threshold": str((used + share_bytes) / meminfo["MemTotal"]),
        "RAY_memory_monitor_refresh_ms": "100",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "private_run.py"), "eat", f"{task_bytes}:{task_count}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.point(3, "out of memory, recovered by doubling")
@pytest.mark.slow
def test_tasks_that_outgrow_a_node_together_run_one_at_a_time() -> None:
    report = outgrow(int(2.5 * GIB), int(1.5 * GIB), 2)
    assert report["finished"] == 2
    assert "out of memory" in report["retries"]


@pytest.mark.point(3, "out of memory, given up")
@pytest.mark.slow
def test_a_task_that_outgrows_a_node_alone_is_given_up() -> None:
    report = outgrow(GIB, 3 * GIB, 1)
    assert report["finished"] == 0
    assert report["retries"] == ["out of memory"] * 3
    assert "given up after 3 retries" in report["error"]
