"""Starts tasks on this machine as SLURM's `srun --kill-on-bad-exit` does: `srun.py TASKS COMMAND`.

Each has the variables that SLURM sets; the first that fails ends the others, and its status is
ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

_LOOK_S = 0.05


def main() -> int:
    count, command = int(sys.argv[1]), sys.argv[2:]
    tasks = [subprocess.Popen(command, env={**os.environ, **_task(i, count)}) for i in range(count)]
    while any(task.poll() is None for task in tasks):
        if any(task.poll() for task in tasks):
            for task in tasks:
                task.kill()
        time.sleep(_LOOK_S)
    return next((abs(task.returncode) for task in tasks if task.returncode), 0)


def _task(rank: int, count: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_NTASKS_PER_NODE": str(count),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_ID": "0",
    }


if __name__ == "__main__":
    sys.exit(main())
