"""Sharded saves on a CUDA device: FSDP2 in a process group of one rank, by NCCL.

Three things are measured, each run in a process of its own (`cuda_sharded_run.py`); the rows are
appended to `benchmarks/results/cuda_sharded.jsonl`:

- `torn`: saves of a state whose every element tells its step, with steps that follow at once; half
  of them copy clones, half the state itself. Each is read back: all of it is of the step it names.
- `stall`: what a save costs the run, as `stall.py` has it: runs with and without saves interleaved,
  each repeat in another order, medians; beside it the save of Lightning's own strategy.
- `restore`: from a cold cache until training begins, and what was restored, to the element.

Without a CUDA device it says so and ends. `--accelerator cpu` runs the same with gloo, to try the
script itself with a small `--size`; those figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("results") / "cuda_sharded.jsonl"
RUN = Path(__file__).with_name("cuda_sharded_run.py")
GB = 10**9
KINDS = ("clone", "lazy")
SYSTEMS = ("none", "ours", "lightning")
TORN_RUNS = 20
"""Short ones, so that their checkpoints fit on the disk."""
TORN_PART = 128
"""The state of a run that looks for torn copies is by so much smaller."""
EVERY, STEPS = 20, 65


def run(act: str, folder: Path, **options: object) -> dict[str, object]:
    """The facts of one run."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, str(RUN), f"--act={act}", f"--dir={folder}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    row = {
        "case": act,
        "at": datetime.now(timezone.utc).isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "options": {key: str(value) for key, value in options.items()},
        **json.loads(done.stdout.splitlines()[-1]),
    }
    if torch.cuda.is_available():
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return row


def torn(options: argparse.Namespace, home: Path) -> bool:
    """Whether no save was torn, and each was committed."""
    saves = failures = 0
    each = options.torn_saves // TORN_RUNS
    for number in range(TORN_RUNS if each else 0):
        folder = home / f"torn-{number}"
        row = run(
            "torn",
            folder,
            accelerator=options.accelerator,
            kind=KINDS[number % 2],
            size=options.size // TORN_PART,
            width=options.width // 8,
            every=2,
            steps=2 * each,
            step_s=0,
        )
        saves, failures = saves + row["saves"], failures + row["torn"]
        shutil.rmtree(folder)
    print(f"torn: {failures} of {saves} saves")
    return failures == 0 and saves == TORN_RUNS * each


def stall(options: argparse.Namespace, home: Path) -> None:
    lost: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for repeat in range(options.repeats):
        rows = {}
        for system in random.Random(repeat).sample(SYSTEMS, len(SYSTEMS)):
            folder = home / system
            shutil.rmtree(folder, ignore_errors=True)
            rows[system] = run("stall", folder, system=system, **_large(options), steps=STEPS)
            if system != "ours":  # the last one is restored
                shutil.rmtree(folder, ignore_errors=True)
        for system, row in rows.items():
            more_s = row["run_s"] - rows["none"]["run_s"]
            lost[system].append(1000 * more_s / max(1, row["saves"]))
    for system, values in lost.items():
        if values:
            spread = f"{min(values):.0f} to {max(values):.0f}"
            print(f"S_lost {system}: {statistics.median(values):.1f} ms a save ({spread})")


def restore(options: argparse.Namespace, home: Path) -> bool:
    """Whether all that was restored is of the newest step that was saved."""
    for path in (home / "ours").rglob("*"):
        if path.is_file():
            with path.open("rb") as file:  # its pages leave the cache
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    row = run("restore", home / "ours", **_large(options), steps=STEPS + 1)
    print(f"restore: {row['until_training_s']:.1f} s until training, of step {row['restored']}")
    return row["restored"] == [float(STEPS // EVERY * EVERY)]


def _large(options: argparse.Namespace) -> dict[str, object]:
    names = ("accelerator", "size", "width", "step_s")
    return {"every": EVERY, **{name: getattr(options, name) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Sharded saves on a CUDA device.")
    parser.add_argument("--accelerator", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", type=int, default=8 * GB, help="bytes of the state")
    parser.add_argument("--width", type=int, default=4096, help="of a block")
    parser.add_argument("--step-s", type=float, default=0.5)
    parser.add_argument("--torn-saves", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="below it checkpoints are written")
    options = parser.parse_args()
    if options.accelerator == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no CUDA device")
        return
    home = Path(tempfile.mkdtemp(prefix="cuda_sharded_", dir=options.dir))
    try:
        whole = torn(options, home)
        stall(options, home)
        restored = restore(options, home) if options.repeats else True
    finally:
        shutil.rmtree(home)
    if not whole:
        sys.exit("saves were torn or missing")
    if not restored:
        sys.exit("what was restored is not what was saved")


if __name__ == "__main__":
    main()
