"""Trainings with the stock HF Trainer in one folder, each killed: `ROOT KILLS SEED`.

Each is a process of its own, forked when transformers is imported, and saves over what an earlier
one left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

os.environ["BT_LIGHTNING"] = "0"
sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint_formats"))

import made_checkpoints
import transformers.trainer

STEP_S = 0.4
DEADLINE_S = 90


class Slow(transformers.TrainerCallback):
    """A step takes so long that a save is at rest before it goes."""

    def on_step_begin(self, *_, **__):
        threading.Event().wait(STEP_S)


def newest(root):
    """Time of the last change in the folder of checkpoints."""
    return max((one.stat().st_mtime_ns for one in root.glob("checkpoint-*")), default=0)


root, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
for number in range(kills):
    before = newest(root)
    child = os.fork()
    if not child:
        model = made_checkpoints.tiny_model(number)
        given = {"save_total_limit": 4, "seed": number, "callbacks": [Slow()]}
        made_checkpoints.train(root, model, steps=1000, **given)
        os._exit(0)
    until = time.monotonic() + DEADLINE_S
    while newest(root) == before and time.monotonic() < until:
        threading.Event().wait(0.005)
    threading.Event().wait(draw.random() * draw.choice((0.02, 1.0, 5.0)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", number, flush=True)
