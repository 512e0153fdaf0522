"""A small training by a Trainer that can be killed at any moment: `job.py JSON`, as of `train`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

import torch
from tiny import digest, make_trainer
from tiny_sft import make_sft_trainer
from transformers import TrainerCallback

from bt_lightning.hf import BTTrainerCallback
from bt_lightning.session.known_checkpoints import KnownCheckpoints


class Journal(TrainerCallback):
    """Appends events to a file, one JSON object each."""

    def __init__(self, path: str, life: int) -> None:
        self._path, self._life = path, life

    def write(self, **event: object) -> None:
        with open(self._path, "a") as file:  # noqa: PTH123 - a string
            file.write(json.dumps({"life": self._life, "pid": os.getpid(), **event}) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.write(event="start", step=state.global_step)


class Slow(TrainerCallback):
    """Gives each step a length."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def on_step_end(self, *_: Any, **__: Any) -> None:
        time.sleep(self._step_s)


def train(
    root: str,
    store: str,
    journal: str,
    life: int,
    seed: int,
    *,
    steps: int = 40,
    step_s: float = 0.0,
    adapter: bool = False,
    **arguments: Any,
) -> None:
    """`step_s`: seconds that a step takes at least; `adapter`: one, trained by TRL."""
    logging.disable(logging.WARNING)
    notes = Journal(journal, life)
    add = KnownCheckpoints.add

    def noted(known: KnownCheckpoints, manifest: Any) -> None:
        add(known, manifest)
        notes.write(event="committed", step=manifest.step, digest=manifest.digest)

    KnownCheckpoints.add = noted
    ours = BTTrainerCallback(dir=root, store=store, project="p", job="j")
    chosen = {"save_total_limit": 3, "eval_strategy": "steps", "eval_steps": 7, **arguments}
    make = make_sft_trainer if adapter else make_trainer
    trainer = make("unused", steps, [ours, notes, Slow(step_s)], **chosen)
    trainer.train()
    notes.write(event="end", step=trainer.state.global_step, digest=digest(trainer.model))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(**json.loads(sys.argv[1]))
