"""From `kill -9` to the end of the first step of the next start: ours and plain Lightning.

One training saves, goes on, and is killed; the same command is started at once. Its seconds, from
the kill on: `imports` (Python, torch, Lightning), `begin` (Trainer, model, the decision where to
resume from), `bytes` (the load of the checkpoint), `state` (into model and optimizer), `step` (the
first step). Cases: `memory` (the worker of the killed run holds it; of plain Lightning there is
none), `warm` and `cold` (page cache of the disk; ours leaves nothing in it, as it writes past it),
`ahead` (cold, and read ahead as `bt-lightning run` does it), `s3` (the disk is lost; a local
SeaweedFS). Where ours restores in `begin`, `bytes` is what is left to do.
Plain Lightning is given the newest path of its ModelCheckpoint, and loads without verification.
Systems and cases are interleaved in a random order; rows go to `benchmarks/results/resume.jsonl`.

    python benchmarks/resume.py --size 1500000000 --repeats 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from loads import commit, drop_caches
from servers import KEPT, Server, start

from bt_lightning.localdir.read_ahead import begin_read_ahead

RESULTS = Path(__file__).with_name("results") / "resume.jsonl"
SCRIPT = Path(__file__).with_name("resume_run.py")
CASES = (
    *(("ours", case) for case in ("memory", "warm", "cold", "ahead", "s3")),
    *(("plain", case) for case in ("warm", "cold", "s3")),
)
PHASES = ("imports", "begin", "bytes", "state", "step")
PATIENCE_S = 300


def measured(system: str, case: str, size: int, server: Server | None) -> dict[str, float]:
    """Save, kill and start again; the seconds of each phase from the kill on."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="resume-") as name:
        folder = Path(name)
        env = {**os.environ, **({} if server is None else server.environment())}
        env["BT_HOLD_MEMORY_S"] = "60" if case == "memory" else "0"
        env["BT_TRAINING_JOB_ID"] = "resume"
        url = "" if server is None else f"s3://{KEPT}/{folder.name}"
        words = [sys.executable, str(SCRIPT), system, str(size), name, url]
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout is not None
            until(first, "durable")
            first.send_signal(signal.SIGKILL)
        if case != "memory":
            time.sleep(3)  # its worker ends: what it held is free
        if case == "s3":
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if case in {"cold", "ahead"}:
            drop_caches(folder)
        killed = time.time()
        if case == "ahead":
            begin_read_ahead(folder / system, shards=True)
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            marks = [until(second, phase) for phase in PHASES]
            second.send_signal(signal.SIGKILL)
        starts = [killed, *marks]
        return {
            name: ends - begins for name, begins, ends in zip(PHASES, starts, marks, strict=False)
        }


def until(process: subprocess.Popen[str], mark: str) -> float:
    """Wait for a mark that the script prints; return its time."""
    for line in process.stdout or ():
        if line.startswith(f"mark {mark} "):
            return float(line.split()[2])
    msg = f"the training ended before {mark!r}"
    raise RuntimeError(msg)


def main() -> None:
    """Measure, print medians, append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_500_000_000, help="bytes of the state")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default="memory,warm,cold,ahead,s3")
    options = parser.parse_args()
    wanted = [one for one in CASES if one[1] in options.cases.split(",")]
    facts = {
        "size": options.size,
        "commit": commit(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 1),
    }
    order, rows = random.Random(0), []
    with contextlib.ExitStack() as stack:
        server = None
        if "s3" in options.cases:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(start("seaweedfs", folder))
        for repeat in range(options.repeats):
            for system, case in order.sample(wanted, len(wanted)):
                found = measured(system, case, options.size, server if case == "s3" else None)
                rows.append({"system": system, "case": case, "repeat": repeat, **found})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    with RESULTS.open("a") as stream:
        stream.writelines(json.dumps({**facts, **row}) + "\n" for row in rows)
    print(f"{'':14} {'all':>6} " + " ".join(f"{phase:>8}" for phase in PHASES))
    for system, case in wanted:
        mine = [row for row in rows if (row["system"], row["case"]) == (system, case)]
        parts = [statistics.median(row[phase] for row in mine) for phase in PHASES]
        total = statistics.median(sum(row[phase] for phase in PHASES) for row in mine)
        print(f"{system + ', ' + case:14} {total:6.2f} " + " ".join(f"{p:8.2f}" for p in parts))
    print(f"load {facts['load']}")


if __name__ == "__main__":
    main()
