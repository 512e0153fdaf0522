"""`docs/stall.png` and the tables of `docs/benchmarks.md`, from the newest rows of `stall.py`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
from rows import last_run
from stall import CASES, LABELS, RESULTS, report, summary

mpl.use("agg")
import matplotlib.pyplot as plt

CHART = Path(__file__).parents[1] / "docs" / "stall.png"
TITLES = {
    "device": "1.5 GB, device-bound steps of 100 ms",
    "many": "20 MB in 2,000 tensors, device-bound steps of 50 ms",
    "cpu": "400 MB, CPU-bound steps on both cores",
}
OURS, THEIRS = "#1b7f5c", "#b9bec4"


def main() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    shown = [case for case in TITLES if any(row["case"] == case for row in rows)]
    figure, axes = plt.subplots(len(shown), 1, figsize=(8, 2.2 * len(shown)), squeeze=False)
    for case, axis in zip(shown, axes[:, 0], strict=True):
        lines = summary(last_run(rows, case))
        lines.sort(key=lambda line: -line["lost"])
        names = [LABELS[line["system"]] for line in lines]
        measured = [1000 * line["lost"] for line in lines]
        lost = [max(value, 1.0) for value in measured]  # a log scale has no place for less
        colors = [OURS if line["system"].startswith("ours") else THEIRS for line in lines]
        axis.barh(names, lost, color=colors, height=0.7)
        axis.set_xscale("log")
        axis.set_xlim(1, 4 * max(lost))
        for place, value in enumerate(measured):
            text = f"{value:,.0f} ms" if value > 0 else "lost in the noise"
            axis.text(max(value, 1.0) * 1.08, place, text, va="center", fontsize=9)
        axis.set_title(TITLES[case], loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    axes[-1, 0].set_xlabel("training time that one save costs, ms (log scale)", fontsize=9)
    figure.tight_layout()
    figure.savefig(CHART, dpi=150)
    for case in CASES:
        mine = last_run(rows, case)
        if mine:
            report(case, mine)


if __name__ == "__main__":
    main()
