"""What a save costs a training run, next to the other ways to save in the background.

Each run is a process of its own: `stall_run.py`; of the case `hf`, the Trainer of `transformers`,
`stall_hf.py`; of the cases `sharded`, ranks with FSDP2, `stall_sharded.py`. Systems are
interleaved, each repeat in another order; the raw rows are appended to
`benchmarks/results/stall.jsonl`. S_lost is the time that a run with saves takes more than the run
without, of the same repeat, divided by the saves. Run it with `nox -s bench`; a case by itself with
`python benchmarks/stall.py --case device`. A long case may be run in pieces: `--repeats 1
--first 3` measures every system once, as the repeat 3.
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
import time
from datetime import datetime, timezone
from pathlib import Path

RESULTS = Path(__file__).with_name("results") / "stall.jsonl"
RUN = Path(__file__).with_name("stall_run.py")
RUN_OF_HF = Path(__file__).with_name("stall_hf.py")
RUN_OF_RANKS = Path(__file__).with_name("stall_sharded.py")
SCRIPTS = {"hf": RUN_OF_HF, "sharded": RUN_OF_RANKS, "sharded-half": RUN_OF_RANKS}
"""Case -> what runs it, if not `stall_run.py`."""
OURS = ["ours"]
RIVALS = ["plain", "async", "dcp-thread", "dcp-process", "torch-checkpointing"]
SHARDED_RIVALS = ["plain", "dcp-thread", "dcp-process", "torch-checkpointing"]
LABELS = {
    "none": "no saves",
    "ours": "bt_lightning",
    "ours-skip": "bt_lightning, overlap=skip",
    "ours-latest": "bt_lightning, overlap=latest",
    "plain": "Lightning",
    "async": "AsyncCheckpointIO",
    "dcp-thread": "DCP async, thread",
    "dcp-process": "DCP async, process",
    "torch-checkpointing": "torch_checkpointing",
}
GB = 10**9
# each case: systems, arguments of the runs, repeats
CASES = {
    "device": (
        ["none", *OURS, *RIVALS],
        {"size": 3 * GB // 2, "tensors": 8, "every": 80, "steps": 250},
        5,
    ),
    "many": (
        ["none", *OURS, *RIVALS],
        {"size": 20 * 10**6, "tensors": 2000, "every": 20, "steps": 250, "step-s": 0.05},
        5,
    ),
    "tight": (
        ["none", "ours", "ours-skip", "ours-latest", "dcp-thread"],
        {"size": 3 * GB // 2, "tensors": 8, "every": 10, "steps": 65},
        5,
    ),
    "small": (
        ["none", *OURS],
        {"size": GB // 10, "tensors": 8, "every": 80, "steps": 330},
        5,
    ),
    "large": (
        ["none", *OURS],
        {"size": 4 * GB, "tensors": 8, "every": 20, "steps": 85, "step-s": 0.4},
        5,
    ),
    "medium": (
        ["none", *OURS],
        {"size": 3 * GB // 2, "tensors": 80, "every": 80, "steps": 170},
        5,
    ),
    "memory": (
        ["none", *OURS, "dcp-thread"],
        {"size": 3 * GB // 2, "tensors": 80, "every": 20, "steps": 50, "sample": 1},
        5,
    ),
    "cpu": (
        ["none", *OURS, *RIVALS],
        {"size": 400 * 10**6, "every": 20, "steps": 50, "step": "cpu", "threads": 2},
        5,
    ),
    "hf": (
        ["none", *OURS, "plain"],
        {"size": 3 * GB // 2, "every": 40, "steps": 130, "step-s": 0.2},
        5,
    ),
    "sharded-half": (
        ["none", *OURS, *SHARDED_RIVALS],
        {"size": GB // 2, "tensors": 80, "every": 40, "steps": 130},
        5,
    ),
    "sharded": (
        ["none", *OURS, *SHARDED_RIVALS],
        {"size": 3 * GB // 2, "tensors": 80, "every": 80, "steps": 250},
        5,
    ),
    "cuda-8": (
        ["none", *OURS, *RIVALS],
        {"size": 8 * GB, "tensors": 80, "every": 20, "steps": 65, "step": "cuda", "step-s": 0.5},
        5,
    ),
    "cuda-32": (
        ["none", *OURS, "dcp-thread"],
        {"size": 32 * GB, "tensors": 320, "every": 20, "steps": 45, "step": "cuda", "step-s": 2},
        5,
    ),
}
"""`size` bytes in `tensors` tensors; `every` so many steps a save; `step-s` seconds a step; with
`sample` the memory is looked at, which takes a little time of its own."""


def possible() -> list[str]:
    """The cases that this machine can run."""
    import torch

    return [case for case in CASES if torch.cuda.is_available() or not case.startswith("cuda")]


def floors(size: int, folder: Path, *, cuda: bool) -> dict[str, float]:
    """Seconds of one memcpy and of one write and fsync of `size` bytes, here and now.

    With `cuda` the copy is one from the device into pinned memory.
    """
    import torch

    torch.set_num_threads(1)
    source = torch.ones(size, dtype=torch.uint8, device="cuda" if cuda else "cpu")
    target = torch.ones(size, dtype=torch.uint8, pin_memory=cuda)
    started = time.perf_counter()
    target.copy_(source)
    copied = time.perf_counter()
    view = memoryview(target.numpy())
    with (folder / "raw").open("xb", buffering=0) as file:
        while view:
            view = view[file.write(view[: 16 * 2**20]) :]
        os.fsync(file.fileno())
    written = time.perf_counter()
    (folder / "raw").unlink()
    return {"memcpy_s": copied - started, "write_s": written - copied}


def run(
    system: str, arguments: dict[str, object], folder: Path, script: Path = RUN
) -> dict[str, object]:
    """One run in a process of its own, on a disk that has nothing left to write."""
    shutil.rmtree(folder / "ck", ignore_errors=True)
    os.sync()
    words = [f"--{name}={value}" for name, value in arguments.items()]
    done = subprocess.run(
        [sys.executable, str(script), f"--system={system}", f"--dir={folder / 'ck'}", *words],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{system} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def commit() -> str:
    """What is measured; with a + if files of the package differ from it."""
    here = RUN.parents[1]
    asked = ["git", "-C", str(here), "describe", "--always", "--exclude=*", "--abbrev=7"]
    name = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run(
        ["git", "-C", str(here), "diff", "--quiet", "HEAD", "--", "bt_lightning"], check=False
    )
    return f"{name}+" if changed.returncode else name


def measure(
    case: str, numbers: range, folder: Path, only: list[str] | None = None
) -> list[dict[str, object]]:
    systems, arguments, _ = CASES[case]
    systems = [system for system in systems if not only or system in only]
    rows = []
    for repeat in numbers:
        facts = {
            "case": case,
            "repeat": repeat,
            "commit": commit(),
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **arguments,
        }
        for system in random.sample(systems, len(systems)):
            script = SCRIPTS.get(case, RUN)
            rows.append({**facts, "system": system, **run(system, arguments, folder, script)})
            print(f"{case} {repeat} {system}: {rows[-1]['run_s']:.2f} s", flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        shutil.rmtree(folder / "ck", ignore_errors=True)
        os.sync()
        cuda = arguments.get("step") == "cuda"
        floor = floors(int(arguments["size"]), folder, cuda=cuda)
        rows.append({**facts, "system": "floor", **floor})
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def summary(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """One line a system, of the rows of one run of one case: medians; times in seconds."""
    plain = {row["repeat"]: row["run_s"] for row in rows if row["system"] == "none"}
    beside = {row["repeat"]: row.get("peak_memory", 0) for row in rows if row["system"] == "none"}
    lines = []
    for system in [name for name in LABELS if name != "none"]:
        mine = [row for row in rows if row["system"] == system]
        if not mine:
            continue
        calls = [row["call_s"] for row in mine]
        extras = [row["extra_s"] for row in mine]
        durable = [time_s for row in mine for time_s in row["durable_s"][1:]]
        lines.append(
            {
                "system": system,
                "lost": statistics.median(
                    (row["run_s"] - plain[row["repeat"]]) / row["saves"] for row in mine
                ),
                "call": statistics.median(s for row in calls for s in row[1:]),
                "step": statistics.median(s for row in extras for s in row[1:]),
                "first": statistics.median(row[0] for row in extras),
                "durable": statistics.median(durable) if durable else None,
                "cpu": statistics.median(row["cpu_s"] for row in mine),
                "rss": statistics.median(row["peak_rss"] for row in mine),
                "more": statistics.median(
                    row.get("peak_memory", 0) - beside.get(row["repeat"], 0) for row in mine
                ),
                "worker": statistics.median(
                    s for row in mine for s in row.get("worker_s", [])[1:] or [0.0]
                ),
            }
        )
    return lines


def label(case: str, system: str) -> str:
    """What saves, as the table calls it."""
    return "the HF Trainer" if (case, system) == ("hf", "plain") else LABELS[system]


def report(case: str, rows: list[dict[str, object]]) -> None:
    arguments = CASES[case][1]
    print(f"\n{case}: {arguments}")
    floor = [row for row in rows if row["system"] == "floor"]
    copy, write = (statistics.median(row[k] for row in floor) for k in ("memcpy_s", "write_s"))
    print(f"  floors: memcpy {1000 * copy:.0f} ms, write and fsync {1000 * write:.0f} ms")
    print(
        "  ms a save                       S_lost   S_call   step  1st step  durable"
        "  worker CPU  more MB"
    )
    for line in summary(rows):
        durable = "-" if line["durable"] is None else f"{1000 * line['durable']:8.0f}"
        print(
            f"  {label(case, line['system']):<28} {1000 * line['lost']:9.1f}"
            f" {1000 * line['call']:8.1f} {1000 * line['step']:7.1f} {1000 * line['first']:8.1f}"
            f" {durable:>8} {1000 * line['worker']:11.0f} {line['more'] / 1e6:8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--system", choices=list(LABELS), action="append", help="default: all")
    parser.add_argument("--first", type=int, default=0, help="number of the first repeat")
    parser.add_argument("--dir", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for case in options.case or possible():
            repeats = options.repeats or CASES[case][2]
            numbers = range(options.first, options.first + repeats)
            report(case, measure(case, numbers, Path(folder), options.system))


if __name__ == "__main__":
    main()
