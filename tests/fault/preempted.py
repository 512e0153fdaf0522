"""A nursery like that of job.py, whose jobs have several ranks and signal themselves.

One JSON command a line. It forks a process for each rank, in a process group of their own, prints
the pids, and at the end their exit statuses. As a launcher does, it ends the other ranks when one
was killed: nobody else would tell them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from datetime import timedelta

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

STEPS_PER_EPOCH, EPOCHS, EVERY = 16, 8, 2  # 64 saves


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
    rank = 0
    heard = threading.Event()
    """Whether rank 0 has asked for what a signal wants."""

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
        if cls.rank != 0 and not found.get("all"):
            # rank 0 hears of it from this rank: a short run must not be over by then
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


look = RankAgreement._look


def told_of_promises(agreement: RankAgreement) -> None:
    look(agreement)
    if agreement._member.asked is not None:
        Moment.heard.set()


finish = WriterSession.finish


def told_while_finishing(session: WriterSession, *args: object) -> None:
    Moment.reach("drain")
    finish(session, *args)


def train(
    root: str,
    store: str,
    journal: str,
    life: int,
    seed: int,
    moment: dict[str, object] | None = None,
    rank: int = 0,
    ranks: int = 1,
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
    Moment.wanted, Moment.rank = moment, rank
    L.seed_everything(seed, verbose=False)
    WriterSession.finish = told_while_finishing
    RankAgreement._look = told_of_promises
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


def child(command: dict[str, object], rank: int, ranks: int, port: int) -> None:
    errors = os.open(command["journal"] + ".err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    if ranks > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks),
            GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="test",
        )
    code = 1
    try:
        train(**command, rank=rank, ranks=ranks)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001 - the parent reads how it ended
        traceback.print_exc()
    os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        ranks, port = command.pop("ranks", 1), command.pop("port", 0)
        pids: list[int] = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, pids[0] if pids else 0)
                child(command, rank, ranks, port)
            os.setpgid(pid, pids[0] if pids else pid)
            pids.append(pid)
        print(*pids, flush=True)
        print(*wait(pids), flush=True)


def wait(pids: list[int]) -> list[int]:
    """Exit statuses in the order of ranks, negative for a signal."""
    ended: dict[int, int] = {}
    killed_at = None
    while len(ended) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended[pid] = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.005)
        if killed_at is None and any(code < 0 for code in ended.values()):
            killed_at = time.monotonic()
        if killed_at is not None and time.monotonic() > killed_at + 5:
            for other in set(pids) - set(ended):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return [ended[pid] for pid in pids]


if __name__ == "__main__":
    main()
