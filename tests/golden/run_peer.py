"""Run many merges with one start-up: executed by the interpreter of the peer's own environment.

Usage: python run_peer.py EXECUTABLE JOBS.json, where JOBS is a list of {"arguments": [...], "log": path, "status":
path}. The slow imports are done once; each merge then runs the executable's script in a forked process of its own, so
none sees another's state.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def run_job(executable: str, job: dict) -> None:
    log = os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [executable, *job["arguments"]]
    status = 1
    try:
        runpy.run_path(executable, run_name="__main__")
        status = 0
    except SystemExit as exit_request:
        status = exit_request.code if isinstance(exit_request.code, int) else int(exit_request.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it died of is the result
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    Path(job["status"]).write_text(str(status))
    os._exit(status & 0x7F)


def main() -> None:
    executable, jobs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # noqa: F401
    import transformers  # noqa: F401

    for number, job in enumerate(jobs, 1):
        child = os.fork()
        if child == 0:
            run_job(executable, job)
        os.waitpid(child, 0)
        print(f"{number}/{len(jobs)}", flush=True)  # noqa: T201 - a script


if __name__ == "__main__":
    main()
