"""A training of the tests, for any number of nodes: `elastic_training.py FOLDER`.

Each start of a rank is a line of `FOLDER/starts`. On node 1 the first start stops at step 7, with
`FOLDER/stopped`; where two nodes trained before and do again, the training ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

FOLDER = Path(sys.argv[1])
STOP = 7


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(100_000, 4), batch_size=2)


class Notes(Callback):
    def on_train_start(self, trainer, module) -> None:
        line = {
            "node": int(os.environ["BT_NODE_RANK"]),
            "rank": trainer.global_rank,
            "world": trainer.world_size,
            "step": trainer.global_step,
        }
        with (FOLDER / "starts").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.back = line["step"] > 0 and line["world"] > 1

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        if trainer.global_step == STOP and trainer.global_rank and not self.back:
            (FOLDER / "stopped").touch()
            signal.pause()

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = self.back and trainer.global_step % 10 == 0


L.Trainer(
    accelerator="cpu",
    devices=1,
    num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
    strategy="ddp",
    max_epochs=1,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[ModelCheckpoint(every_n_train_steps=2), Notes()],
).fit(Net())
