"""Starts tasks on this machine as SLURM's `srun --kill-on-bad-exit` does: `srun.py TASKS COMMAND`.

`TASKS` is a number of one node, or of several, as `2x1`: nodes by tasks of each. Each has the
variables that SLURM sets; the first that fails ends the others, and its status is ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

_LOOK_S = 0.05


def main() -> int:
    nodes, _, each = sys.argv[1].rpartition("x")
    job, command = (int(nodes or 1), int(each)), sys.argv[2:]
    tasks = [
        subprocess.Popen(command, env={**os.environ, **_task(rank, *job)})
        for rank in range(job[0] * job[1])
    ]
    while any(task.poll() is None for task in tasks):
        if any(task.poll() for task in tasks):
            for task in tasks:
                task.kill()
        time.sleep(_LOOK_S)
    return next((abs(task.returncode) for task in tasks if task.returncode), 0)


def _task(rank: int, nodes: int, each: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NODELIST": "localhost",
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * each),
        "SLURM_NTASKS_PER_NODE": str(each),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % each),
        "SLURM_NODEID": str(rank // each),
        "SLURM_STEP_ID": "0",
    }


if __name__ == "__main__":
    sys.exit(main())
