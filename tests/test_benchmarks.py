"""The benchmarks of the kernels run: nothing else would notice that one of them no longer does."""

import subprocess
import sys
from pathlib import Path


def test_every_kernel_is_timed() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "kernels.py"

    command = [sys.executable, str(script), "--block", "8192", "--seconds", "0"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert len([line for line in run.stdout.splitlines() if line.endswith("Gelem/s")]) >= 40
