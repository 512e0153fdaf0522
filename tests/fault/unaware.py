"""A training of 60 saves whose script knows nothing of bt_lightning: `unaware.py PROCESSES`.

It prints what it comes to, a line each: `begin STEP`, `step STEP KEPT...` (steps of the checkpoints
that its ModelCheckpoint keeps), and `end DIGEST`.
"""

from __future__ import annotations

import re
import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from model import Net, Points, digest
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

STEPS_PER_EPOCH, EPOCHS, EVERY = 15, 8, 2  # some epochs end between two saves


class Printer(Callback):
    def __init__(self, save: ModelCheckpoint) -> None:
        self._save = save

    def on_train_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        if trainer.is_global_zero:
            print("begin", trainer.global_step, flush=True)

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.is_global_zero:
            kept = [re.sub(r".*checkpoint-(\d+).*", r"\1", p) for p in self._save.best_k_models]
            print("step", trainer.global_step, *kept, flush=True)


class Data(L.LightningDataModule):
    def train_dataloader(self) -> StatefulDataLoader[torch.Tensor]:
        ranks = self.trainer.world_size
        points = Points(4 * STEPS_PER_EPOCH * ranks)
        sampler = None
        if ranks > 1:
            sampler = StatefulDistributedSampler(points, ranks, self.trainer.global_rank)
        return StatefulDataLoader(points, batch_size=4, sampler=sampler, shuffle=sampler is None)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    L.seed_everything(1, verbose=False)
    processes = int(sys.argv[1])
    save = ModelCheckpoint(every_n_train_steps=EVERY, save_top_k=3, monitor="step", mode="max")
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[save, Printer(save)],
    )
    trainer.fit(Net(), datamodule=Data())
    if trainer.is_global_zero:
        print("end", digest(trainer), flush=True)


if __name__ == "__main__":
    main()
