"""A small training job that can be killed at any moment, and a nursery that forks it quickly.

`python job.py` imports torch and lightning once, then reads one JSON command a line: it forks, the
child trains, and the parent prints the child's pid at once and its exit status at the end.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from model import Journal, Net, Points, digest
from torchdata.stateful_dataloader import StatefulDataLoader

from bt_lightning import BTLightning
from bt_lightning.session.known_checkpoints import KnownCheckpoints

STEPS_PER_EPOCH, EPOCHS, EVERY = 16, 5, 2  # 40 saves; some fall on an epoch's last batch


class Slow(Callback):
    """Gives each step a length."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def on_train_batch_end(self, *_: object) -> None:
        if self._step_s:
            time.sleep(self._step_s)


def train(
    root: str,
    store: str,
    journal: str,
    life: int,
    seed: int,
    *,
    width: int = 32,
    keep: int = 3,
    on_error: str = "raise",
    step_s: float = 0.0,
    options: dict[str, object] | None = None,
) -> None:
    """`step_s`: seconds that a step takes at least."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    L.seed_everything(seed, verbose=False)
    notes = Journal(journal, life)
    add = KnownCheckpoints.add

    def noted(known: KnownCheckpoints, manifest: object) -> None:
        add(known, manifest)
        notes.write(event="committed", step=manifest.step, digest=manifest.digest)

    KnownCheckpoints.add = noted
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            BTLightning(
                dir=root,
                store=store,
                project="p",
                job="j",
                on_error=on_error,
                storage_options=options,
            ),
            ModelCheckpoint(every_n_train_steps=EVERY, save_top_k=keep, monitor="step", mode="max"),
            notes,
            Slow(step_s),
        ],
    )
    points = Points(4 * STEPS_PER_EPOCH)
    trainer.fit(Net(width), StatefulDataLoader(points, batch_size=4, shuffle=True))
    notes.write(event="end", step=trainer.global_step, digest=digest(trainer))


def main() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            errors = os.open(command["journal"] + ".err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(errors, 2)
            try:
                train(**command)
            except BaseException:  # noqa: BLE001 - the parent reads how it ended
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
