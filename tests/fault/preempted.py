"""A small training on one rank or several, which sends itself signals at the moment it is told.

`preempted.py JSON`, the arguments of `train`; the ranks are told by the variables of torchrun.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import warnings
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from model import Journal, Net, Points, digest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from bt_lightning import BTLightning
from bt_lightning.session.agree_on_boundary import RankAgreement
from bt_lightning.session.writer_session import WriterSession

STEPS_PER_EPOCH, EPOCHS, EVERY = 16, 8, 4  # 32 saves
_TRAINING = {"dataloading", "epoch_end", "save", "step", "validation"}


class Telling(Points):
    def __getitem__(self, index: int) -> torch.Tensor:
        Moment.reach("dataloading", index)
        return super().__getitem__(index)


class TellingNet(Net):
    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        Moment.reach("step", self.trainer.global_step)
        return super().training_step(batch, index)

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        sanity = self.trainer.sanity_checking
        Moment.reach("sanity" if sanity else "validation", self.trainer.global_step + index)
        self.log("val", self.net(batch).mean(), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        Moment.reach("save", self.trainer.global_step)


class Moment(Callback):
    """Sends a real signal to this rank, or to all, when the run comes to a named moment."""

    wanted: dict[str, object] | None = None
    rank, ranks = 0, 1
    heard = threading.Event()
    """Whether rank 0 has asked for a save or an end, and it is not carried out."""

    @classmethod
    def reach(cls, name: str, number: int = 0) -> None:
        found = cls.wanted
        if found is None or found["name"] != name or number < found.get("number", 0):
            return
        if found.get("rank", 0) != cls.rank:
            return
        cls.wanted = None
        for _ in range(found.get("times", 1)):
            signum = found.get("signal", signal.SIGTERM)
            if found.get("all"):
                os.killpg(0, signum)
            else:
                os.kill(os.getpid(), signum)
        if cls.ranks > 1 and name in _TRAINING:
            # the ranks agree on a thread of each: a short run must not be over by then
            assert cls.heard.wait(60)

    def setup(self, *_: object, stage: str) -> None:
        self.reach("setup")

    def on_fit_start(self, *_: object) -> None:
        self.reach("fit_start")

    def on_train_start(self, *_: object) -> None:
        self.reach("train_start")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.reach("epoch_end", trainer.global_step)

    def on_train_end(self, *_: object) -> None:
        self.reach("train_end")


look, done = RankAgreement._look, RankAgreement.done


def told_of_promises(agreement: RankAgreement) -> None:
    look(agreement)
    with agreement._changed:
        if agreement._member.asked is not None:
            Moment.heard.set()


def told_of_ends(agreement: RankAgreement) -> None:
    done(agreement)
    Moment.heard.clear()


finish = WriterSession.finish


def told_while_finishing(session: WriterSession, *args: Any, **named: Any) -> None:
    Moment.reach("drain")
    finish(session, *args, **named)


def train(
    root: str,
    store: str,
    journal: str,
    life: int,
    seed: int,
    moment: dict[str, object] | None = None,
    trainer_options: dict[str, object] | None = None,
    save: dict[str, object] | None = None,
    grace_s: float | None = 60.0,
    interval_s: float | None = None,
    bt: dict[str, object] | None = None,
    width: int = 32,
    validation_batches: int = 4,
) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    Moment.wanted, Moment.rank, Moment.ranks = moment, rank, ranks
    L.seed_everything(seed, verbose=False)
    WriterSession.finish = told_while_finishing
    RankAgreement._look, RankAgreement.done = told_of_promises, told_of_ends
    notes = Journal(journal, life)
    wanted = {"every_n_train_steps": EVERY, "save_top_k": 3, "monitor": "step", "mode": "max"}
    callbacks: list[Callback] = [
        BTLightning(
            **{
                "dir": root,
                "store": store,
                "project": "p",
                "job": "j",
                "grace": timedelta(seconds=grace_s) if grace_s else None,
                "interval": timedelta(seconds=interval_s) if interval_s else None,
                **(bt or {}),
            }
        ),
        ModelCheckpoint(**(wanted if save is None else save)),
        notes,
        Moment(),
    ]
    trainer = L.Trainer(
        **{
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "devices": ranks,
            "strategy": "ddp" if ranks > 1 else "auto",
            "use_distributed_sampler": False,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
            **(trainer_options or {}),
        }
    )
    points = Telling(4 * STEPS_PER_EPOCH * ranks)
    sampler = StatefulDistributedSampler(points, ranks, rank, shuffle=True) if ranks > 1 else None
    loader = StatefulDataLoader(points, batch_size=4, sampler=sampler, shuffle=sampler is None)
    validation = DataLoader(Telling(8 * validation_batches), batch_size=8)
    trainer.fit(TellingNet(width), loader, validation)
    Moment.reach("after")
    if rank == 0:
        notes.write(event="end", step=trainer.global_step, digest=digest(trainer))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(**json.loads(sys.argv[1]))
