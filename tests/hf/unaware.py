"""A script that knows nothing of us: it is killed in its first attempt, and prints how it ends."""

from __future__ import annotations

import os
import signal
import sys

import torch
from tiny import digest, make_trainer
from transformers import TrainerCallback


class KillAt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5 and os.environ.get("BT_RETRY_COUNT") == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_begin(self, args, state, control, **_):
        print("begins at", state.global_step, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer = make_trainer(sys.argv[1], 8, [KillAt()])
    trainer.train()
    print("ends with", trainer.state.global_step, digest(trainer.model), flush=True)
