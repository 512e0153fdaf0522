"""`docs/transfer.png` and the tables of transfers, from the rows of `transfer.py`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
from chart import OURS, THEIRS
from rows import last_run
from transfer import CASES, LABELS, RESULTS, report, summary

mpl.use("agg")
import matplotlib.pyplot as plt

CHART = Path(__file__).parents[1] / "docs" / "transfer.png"
SHOWN = ["memory-4g", "far-1g", "down-4g", "juicefs-up", "juicefs-down", "load"]
FLOOR = "#dfe3e6"


def color_of(client: str) -> str:
    if client == "http":
        return FLOOR
    return OURS if client.startswith("ours") else THEIRS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--chart", type=Path, default=CHART)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    shown = [name for name in SHOWN if any(row["case"] == name for row in rows)]
    counts = [len({row["client"] for row in last_run(rows, name)}) for name in shown]
    figure, axes = plt.subplots(
        len(shown),
        1,
        figsize=(8, sum(0.6 + 0.27 * count for count in counts)),
        squeeze=False,
        gridspec_kw={"height_ratios": counts},
    )
    for name, axis in zip(shown, axes[:, 0], strict=True):
        lines = summary(last_run(rows, name))[::-1]
        speeds = [line["mb_s"] for line in lines]
        labels = [LABELS[line["client"]] for line in lines]
        colors = [color_of(line["client"]) for line in lines]
        axis.barh(labels, speeds, color=colors, height=0.7)
        axis.set_xlim(0, 1.15 * max(speeds))
        for place, speed in enumerate(speeds):
            axis.text(speed, place, f" {speed:,.0f}", va="center", fontsize=9)
        axis.set_title(CASES[name].title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    axes[-1, 0].set_xlabel("MB/s, median", fontsize=9)
    figure.tight_layout()
    figure.savefig(options.chart, dpi=150)
    for name in CASES:
        mine = last_run(rows, name)
        if mine:
            report(name, mine)


if __name__ == "__main__":
    main()
