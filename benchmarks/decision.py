"""How long a start takes to choose among many checkpoints of its directory; no content is read.

python benchmarks/decision.py --checkpoints 50
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from loads import commit

from bt_lightning import BTCheckpointIO
from bt_lightning.restore.first_read import FirstRead
from bt_lightning.session.options import Options
from bt_lightning.session.start_point import StartPointSearch
from bt_lightning.session.straight_reads import StraightReads

RESULTS = Path(__file__).with_name("results") / "decision.jsonl"


def main() -> None:
    """Save, decide some times, append a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=50)
    parser.add_argument("--tensors", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    weights = {f"w{number}": torch.rand(25_000) for number in range(options.tensors)}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for step in range(1, options.checkpoints + 1):
            state = {"state_dict": weights, "optimizer_states": [], "global_step": step}
            BTCheckpointIO().save_checkpoint(state, root / f"checkpoint-{step}")
        config = Options.of(dir=name).merged({}).session(root)
        took = []
        for _ in range(options.repeats):
            began = time.perf_counter()
            straight = StraightReads(config, FirstRead(), 1)
            search = StartPointSearch(config, None, straight, verifies=False)  # no store, no worker
            start = search.decide()
            took.append(time.perf_counter() - began)
            assert str(start.path).endswith(f"checkpoint-{options.checkpoints}")
    row = {"checkpoints": options.checkpoints, "commit": commit(), "seconds": took}
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(f"{options.checkpoints} checkpoints: {1000 * statistics.median(took):.1f} ms")


if __name__ == "__main__":
    main()
