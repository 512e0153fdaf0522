"""What saving and loading a checkpoint costs, next to plain Lightning and to the bare disk.

A and B are interleaved, each repeat in another order; the raw rows are appended to
`benchmarks/results/save.jsonl`, the medians are printed. Run it with `nox -s bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO

import bt_lightning
from bt_lightning import BTCheckpointIO

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).with_name("results") / "save.jsonl"


def checkpoint(size: int, tensors: int) -> dict[str, object]:
    """A state as Lightning dumps it: weights, and two moments for each; `size` bytes in all."""
    each = size // 4 // 3 // tensors
    weights = {f"layer.{i}.weight": torch.randn(each) for i in range(tensors)}
    moments = {
        i: {"step": torch.tensor(7.0), "exp_avg": w * 0.1, "exp_avg_sq": w * w}
        for i, w in enumerate(weights.values())
    }
    groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "params": list(range(tensors))}]
    return {
        "epoch": 1,
        "global_step": 100,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": weights,
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "lr_schedulers": [{"last_epoch": 1}],
        "loops": {},
    }


def raw(state: dict[str, object], path: Path) -> None:
    """The floor: the same bytes in one file, fsynced."""
    optimizer = state["optimizer_states"][0]["state"].values()
    tensors = [*state["state_dict"].values(), *(t for s in optimizer for t in s.values())]
    with path.open("wb", buffering=0) as file:
        for tensor in tensors:
            file.write(memoryview(tensor.numpy()).cast("B"))
        os.fsync(file.fileno())


def plain(state: dict[str, object], path: Path) -> None:
    """Plain Lightning: returns before the bytes are durable."""
    TorchCheckpointIO().save_checkpoint(state, path)


def plain_synced(state: dict[str, object], path: Path) -> None:
    """Plain Lightning, then fsync: as durable as ours, without a digest."""
    plain(state, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def ours(state: dict[str, object], path: Path) -> None:
    """Durable, with digests, when it returns."""
    BTCheckpointIO().save_checkpoint(state, path)


def load_plain(path: Path) -> object:
    return TorchCheckpointIO().load_checkpoint(path, weights_only=True)


def load_ours(path: Path) -> object:
    return BTCheckpointIO().load_checkpoint(path)


SAVERS: dict[str, Callable[[dict[str, object], Path], None]] = {
    "raw write + fsync": raw,
    "Lightning": plain,
    "Lightning + fsync": plain_synced,
    "bt_lightning": ours,
}
LOADERS = {"Lightning": load_plain, "bt_lightning": load_ours}


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    cpu = time.process_time()
    wall = time.perf_counter()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(size: int, tensors: int, repeats: int, folder: Path) -> list[dict[str, object]]:
    state = checkpoint(size, tensors)
    facts = {
        "size": size,
        "tensors": tensors,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "bt_lightning": bt_lightning.__version__,
        "cpus": os.cpu_count(),
    }
    rows = []
    for repeat in range(-1, repeats):  # the first is a warm-up, kept and marked
        for name in random.sample(list(SAVERS), len(SAVERS)):
            path = folder / name.replace(" ", "-")
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            os.sync()
            wall, cpu = timed(lambda name=name, path=path: SAVERS[name](state, path))
            rows.append({**facts, "what": "save", "who": name, "wall_s": wall, "cpu_s": cpu})
            rows[-1]["repeat"] = repeat
        for name in random.sample(list(LOADERS), len(LOADERS)):
            path = folder / name
            wall, cpu = timed(lambda name=name, path=path: LOADERS[name](path))
            rows.append({**facts, "what": "load", "who": name, "wall_s": wall, "cpu_s": cpu})
            rows[-1]["repeat"] = repeat
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="MB")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dir", default=None, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for megabytes in options.sizes:
            for tensors in (20, 2000):
                rows = measure(megabytes * 10**6, tensors, options.repeats, Path(folder))
                with RESULTS.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
                report(megabytes, tensors, rows)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    print(f"raw rows: {RESULTS}", file=sys.stderr)


def report(megabytes: int, tensors: int, rows: list[dict[str, object]]) -> None:
    print(f"{megabytes} MB in {3 * tensors} tensors, medians of the repeats")
    for what, names in (("save", SAVERS), ("load", LOADERS)):
        for name in names:
            mine = [
                row
                for row in rows
                if row["what"] == what and row["who"] == name and row["repeat"] >= 0
            ]
            wall = statistics.median(row["wall_s"] for row in mine)
            cpu = statistics.median(row["cpu_s"] for row in mine)
            rate = megabytes / 1000 / wall
            print(f"  {what}  {name:<20} {wall:7.3f} s  {rate:5.2f} GB/s  CPU {cpu:6.3f} s")


if __name__ == "__main__":
    main()
