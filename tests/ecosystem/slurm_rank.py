"""Runs `sharded_runs.py JOBS` as the task of SLURM that this process is."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

os.environ["NODE_RANK"] = os.environ["SLURM_PROCID"]
os.environ["RANKS"] = os.environ["SLURM_NTASKS"]
SCRIPT = Path(__file__).parents[1] / "plugin" / "sharded_runs.py"
runpy.run_path(str(SCRIPT), run_name="__main__")
