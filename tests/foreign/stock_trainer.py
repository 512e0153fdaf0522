"""A stock training with the HF Trainer in `$BT_CHECKPOINT_DIR`, killed in the middle of a save."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

os.environ["BT_LIGHTNING"] = "0"  # as with a Trainer that the callback cannot join
sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint_formats"))

import made_checkpoints
from transformers import Trainer

ROOT = Path(os.environ["BT_CHECKPOINT_DIR"])
PUBLISHED = Path(sys.argv[1])
"""A folder of the store: the training goes on when that has its first checkpoint."""
save_state = Trainer._save_rng_state


def save_rng_state(trainer, output_dir):
    """Wait for the first to be sent; die in the last save, whose state is not written yet."""
    if trainer.state.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    save_state(trainer, output_dir)


Trainer._save_rng_state = save_rng_state
print("begins at", sorted(one.name for one in ROOT.iterdir() if one.is_dir()), flush=True)
made_checkpoints.train(ROOT, made_checkpoints.tiny_model(), steps=10, save_total_limit=2)
