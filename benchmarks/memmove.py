"""How fast memmove(3) copies into an arena, by the size of each part: how tensors are to be cut.

GB/s of one thread, medians of interleaved repeats; rows go to `benchmarks/results/memmove.jsonl`.
"""

from __future__ import annotations

import ctypes
import json
import random
import statistics
import time
from pathlib import Path

import torch

from bt_lightning.snapshot.arena import Arena

RESULTS = Path(__file__).with_name("results") / "memmove.jsonl"
MB = 1024 * 1024
SIZE = 768 * MB
PARTS = (1, 16, 32, 64, 128, 192, 256, 384, 768)


def main() -> None:
    source = torch.ones(SIZE, dtype=torch.uint8)
    arena = Arena(0, SIZE)
    arena.touch(0, SIZE)
    rows = []
    for repeat in range(5):
        for part in random.sample(PARTS, len(PARTS)):
            length = part * MB
            started = time.perf_counter()
            for start in range(0, SIZE, length):
                ctypes.memmove(arena.address + start, source.data_ptr() + start, length)
            seconds = time.perf_counter() - started
            rows.append({"repeat": repeat, "part_mb": part, "gb_s": SIZE / seconds / 1e9})
    with RESULTS.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print("| part, MB | " + " | ".join(map(str, PARTS)) + " |")
    print("|---|" + "---|" * len(PARTS))
    medians = [statistics.median(r["gb_s"] for r in rows if r["part_mb"] == p) for p in PARTS]
    print("| GB/s | " + " | ".join(f"{value:.1f}" for value in medians) + " |")


if __name__ == "__main__":
    main()
