"""What `interval="auto"` loses against fixed intervals: a simulation with the package's formula.

    python benchmarks/interval.py

A job has to do useful work of 20 times its mean time between failures, and of 10 days at least.
Failures come at random (exponential), also during a restart. A failure loses what was trained since
the last checkpoint that was durable, and the restart. `auto` begins with what it assumes of a job
that it does not know, one failure a day, learns the cost at its first save, and sees its own
failures. Each strategy meets the same failures. Rows go to results/interval.jsonl, and the table is
printed.
"""

from __future__ import annotations

import bisect
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean

from bt_lightning.optimal_save_interval import FIRST_S, FailureRecord, best_interval

RESULTS = Path(__file__).parent / "results" / "interval.jsonl"
DAY = 86400.0
RESTART_S = 120.0
PRIOR_S, OVERHEAD = DAY, 0.05
REPEATS = 20
FIXED = {"1 min": 60.0, "10 min": 600.0, "1 h": 3600.0, "4 h": 14400.0}
CASES = [  # cost of a save to training, until it is durable, mean time between failures
    (cost_s, durable_s, mtbf_s)
    for cost_s, durable_s in ((0.03, 3.0), (1.0, 30.0), (20.0, 60.0))
    for mtbf_s in (1800.0, 4 * 3600.0, DAY, 7 * DAY)
]


class Failures:
    """Moments of wall time at which whatever runs dies; the same for every strategy."""

    def __init__(self, seed: int, mtbf_s: float) -> None:
        self._random = random.Random(seed)
        self._mtbf_s = mtbf_s
        self._at = [self._random.expovariate(1 / mtbf_s)]

    def after(self, now: float) -> float:
        while self._at[-1] <= now:
            self._at.append(self._at[-1] + self._random.expovariate(1 / self._mtbf_s))
        return self._at[bisect.bisect_right(self._at, now)]


def simulate(
    fixed_s: float | None, cost_s: float, durable_s: float, work_s: float, failures: Failures
) -> tuple[float, int]:
    """Wall time until the work is done, and how many saves that took; `fixed_s` None is `auto`."""
    wall = done = kept = 0.0
    observed, failed, saves = 0.0, 0, 0
    while True:  # one life
        began, done, pending = wall, kept, []
        dies = failures.after(wall)
        measured = False
        while True:  # one interval
            if fixed_s is not None:
                interval = fixed_s
            elif not measured:
                interval = FIRST_S
            else:
                record = FailureRecord(observed + wall - began, failed)
                interval = best_interval(cost_s, record.mtbf_s(PRIOR_S), OVERHEAD, durable_s)
            step = min(interval, work_s - done)
            ends = wall + step + (cost_s if done + step < work_s else 0.0)
            if ends >= dies:
                wall = dies
                break
            wall, done = ends, done + step
            if done >= work_s:
                return wall, saves
            saves, measured = saves + 1, True
            pending.append((wall - cost_s + max(cost_s, durable_s), done))
            while pending and pending[0][0] <= wall:
                kept = pending.pop(0)[1]
        for at, state in pending:
            kept = state if at <= wall else kept
        observed, failed = observed + wall - began, failed + 1
        while (again := failures.after(wall)) < wall + RESTART_S:
            wall = again
        wall += RESTART_S


def measure() -> list[dict[str, object]]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    rows = []
    for cost_s, durable_s, mtbf_s in CASES:
        work_s = max(10 * DAY, 20 * mtbf_s)
        for repeat in range(REPEATS):
            for name, fixed_s in {"auto": None, **FIXED}.items():
                failures = Failures(repeat, mtbf_s)
                wall, saves = simulate(fixed_s, cost_s, durable_s, work_s, failures)
                rows.append(
                    {
                        "case": f"{cost_s:g} s, {mtbf_s / 3600:g} h",
                        "system": name,
                        "repeat": repeat,
                        "cost_s": cost_s,
                        "durable_s": durable_s,
                        "mtbf_s": mtbf_s,
                        "work_s": work_s,
                        "wall_s": round(wall, 1),
                        "saves": saves,
                        "commit": commit,
                    }
                )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    names = ["auto", *FIXED]
    lines = [
        "| cost of a save | durable after | a failure every | " + " | ".join(names) + " |",
        "|---:|---:|---:|" + "---:|" * len(names),
    ]
    for cost_s, durable_s, mtbf_s in CASES:
        lost = {}
        for name in names:
            mine = [
                float(row["wall_s"]) / float(row["work_s"]) - 1
                for row in rows
                if (row["cost_s"], row["mtbf_s"], row["system"]) == (cost_s, mtbf_s, name)
            ]
            lost[name] = mean(mine)
        least = min(lost.values())
        cells = [
            f"**{lost[name]:.2%}**" if lost[name] <= least * 1.0001 else f"{lost[name]:.2%}"
            for name in names
        ]
        every = f"{mtbf_s / 3600:g} h"
        lines.append(f"| {cost_s:g} s | {durable_s:g} s | {every} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    rows = measure()
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
