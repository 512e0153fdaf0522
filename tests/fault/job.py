"""A small training that can be killed at any moment: `job.py JSON`, the arguments of `train`."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from model import Adapted, Journal, Net, Points, digest
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
    adapted: bool = False,
) -> None:
    """`step_s`: seconds that a step takes at least. `adapted`: train low-rank layers on a base."""
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
                save_frozen=False if adapted else None,
            ),
            ModelCheckpoint(every_n_train_steps=EVERY, save_top_k=keep, monitor="step", mode="max"),
            notes,
            Slow(step_s),
        ],
    )
    points = Points(4 * STEPS_PER_EPOCH)
    module = Adapted(width) if adapted else Net(width)
    trainer.fit(module, StatefulDataLoader(points, batch_size=4, shuffle=True))
    notes.write(event="end", step=trainer.global_step, digest=digest(trainer))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(**json.loads(sys.argv[1]))
