"""Trains as one rank of several whose strategy shards the model; a script of the tests.

`sharded_runs.py JOBS`, a JSON file. Each job is one `fit`; what it came to is in its folder `out`:
`RANK.json`, and the whole state by name in `state.pt`, of rank 0.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, Dataset

from bt_lightning import BTLightning
from bt_lightning.errors import CheckpointError
from bt_lightning.lightning_plugin.interim_saves import InterimSaves
from bt_lightning.session.fit_selection import process_fits
from bt_lightning.snapshot.local_shards import live_state, stored_part

torch.set_num_threads(1)
RANK, RANKS = int(os.environ.get("NODE_RANK", "0")), int(os.environ.get("RANKS", "1"))
WIDTH = 12


class Rows(Dataset):
    def __init__(self, length: int = 48) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.sin(torch.arange(float(WIDTH)) * (index + 1))


class Net(L.LightningModule):
    """A block of two layers; as each kind of strategy has it."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__()
        self.job = job
        hidden = job.get("hidden", 2 * WIDTH)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(job.get("dropout", 0.0)),
            torch.nn.Linear(hidden, WIDTH),
            torch.nn.LayerNorm(WIDTH),
        )
        if job.get("frozen"):  # all that the last rank has of a flat parameter
            self.net[3:].requires_grad_(False)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, WIDTH))
        self.trained: list[tuple[int, list[int]]] = []
        self.sharded = False

    def configure_model(self) -> None:
        kind = self.job["kind"]
        if self.sharded or kind in {"single", "ddp", "fsdp1"}:
            return
        self.sharded = True
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        mesh = self.device_mesh
        if kind == "hsdp":
            both = init_device_mesh("cpu", (2, RANKS // 2), mesh_dim_names=("copies", "parts"))
            fully_shard(self.net, mesh=both)
            return
        if mesh["tensor_parallel"].size() > 1:
            plan = {"0": ColwiseParallel(), "3": RowwiseParallel()}
            parallelize_module(self.net, mesh["tensor_parallel"], plan)
        if mesh["data_parallel"].size() > 1:
            fully_shard(self.net, mesh=mesh["data_parallel"])

    def on_fit_start(self) -> None:  # before the state is restored
        torch.manual_seed(7 + (RANK if self.job.get("dropout") else 0))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        indices, rows = batch
        if self.global_step == self.job.get("stop_at"):
            end(self.job)
        self.trained.append((self.global_step, indices.tolist()))
        loss = ((self.net(rows) - rows.flip(1)) * self.scale).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val", self.net(batch[1]).pow(2).mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        weights = [one for one in self.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-2, foreach=False)
        if self.job.get("constant"):
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


def wait(job: dict[str, Any]) -> None:
    """Wait until the checkpoint is committed that the test expects."""
    until = time.monotonic() + 60
    while "there" in job and not (Path(job["root"]) / job["there"]).is_dir():
        assert time.monotonic() < until
        time.sleep(0.01)


def end(job: dict[str, Any]) -> None:
    """End this rank at once, or in a way of the test."""
    wait(job)
    if job["end"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["end"] == "term" and RANK == 0:
        os.kill(os.getpid(), signal.SIGTERM)


def whole(value: Any) -> torch.Tensor:
    if type(value).__name__ == "ShardedTensor":  # of FSDP1: this rank's part will do
        return stored_part(value, "")
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def local(value: Any) -> torch.Tensor:
    if type(value).__name__ == "ShardedTensor":
        return stored_part(value, "")
    return value.to_local() if hasattr(value, "to_local") else value


def by_name(module: Any, optimizers: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the state, the live ones."""
    state = live_state(module, optimizers)
    found = {f"state_dict.{name}": value for name, value in state["state_dict"].items()}
    for number, optimizer in enumerate(state["optimizer_states"]):
        for name, entry in optimizer["state"].items():
            for key, value in entry.items():
                found[f"optimizer_{number}.{name}.{key}"] = value
    return {
        name: value if type(value).__name__ == "ShardedTensor" else value.detach()
        for name, value in sorted(found.items())
    }


class Report(Callback):
    """Writes what a fit came to."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.collectives: list[int] = []
        self.seen: set[str] = set()
        self.first: int | None = None
        self.odd = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.first = trainer.global_step
        if self.job.get("loaded"):
            self._state(trainer, "loaded.pt")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.job.get("dump_at"):
            self._state(trainer, "at.pt")
        self._die(trainer, "before it saves")
        if self._is_time_of("worker_stops_at", trainer):
            wait(self.job)  # or the next save has no arena
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGSTOP)
        if trainer.global_step == self.job.get("odd_at"):
            self._save_oddly(trainer)
        if trainer.global_step == self.job.get("elsewhere_at"):
            trainer.save_checkpoint(Path(self.job["out"]) / "elsewhere.ckpt")

    def _is_time_of(self, name: str, trainer: L.Trainer) -> bool:
        return trainer.global_step == self.job.get(name) and self.job["dying"] == RANK

    def _die(self, trainer: L.Trainer, when: str) -> None:
        is_time = trainer.global_step == self.job.get("dies_at") and when == self.job["dies"]
        if is_time and self.job["dying"] == RANK:
            wait(self.job)  # for the save before
            for child in multiprocessing.active_children():
                child.kill()
            (Path(self.job["out"]) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self._die(trainer, "in the call")
        self.seen |= {type(value).__name__ for value in checkpoint["state_dict"].values()}
        if self.odd and RANK == 1:
            msg = "the reader is gone"
            raise OSError(msg)

    def _save_oddly(self, trainer: L.Trainer) -> None:
        """A save whose hook raises on rank 1; the script goes on."""
        self.odd, saves = True, trainer.strategy.checkpoint_io._session.saves
        try:
            trainer.save_checkpoint(Path(self.job["root"]) / "odd")
            saves.saver.drain()
            saves.collect()
        except (OSError, CheckpointError) as error:
            said = f"{type(error).__name__}: {error}"
            (Path(self.job["out"]) / f"odd-{RANK}").write_text(said)
        self.odd = False

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        digest = hashlib.sha256()
        tensors = self._state(trainer, "state.pt")
        for name, value in tensors.items():
            digest.update(name.encode() + local(value).contiguous().numpy().tobytes())
        said = {
            "digest": digest.hexdigest(),
            "first": self.first,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "trained": pl_module.trained,
            "draw": torch.rand(3).tolist(),
            "collectives": self.collectives,
            "seen": sorted(self.seen),
        }
        (Path(self.job["out"]) / f"{RANK}.json").write_text(json.dumps(said))

    def _state(self, trainer: L.Trainer, name: str) -> dict[str, Any]:
        model = trainer.strategy.model if self.job["kind"] == "fsdp1" else trainer.lightning_module
        tensors = by_name(model, trainer.optimizers)
        gathered = {each: whole(value).clone() for each, value in tensors.items()}
        if RANK == 0:
            torch.save(gathered, Path(self.job["out"]) / name)
        return tensors


class CpuFSDP(FSDPStrategy):
    """Lightning refuses the class itself without CUDA."""

    def _setup_model(self, model: Any) -> Any:
        make = FullyShardedDataParallel.__init__

        def on_cpu(made: Any, *args: Any, **kwargs: Any) -> None:
            make(made, *args, **{**kwargs, "device_id": torch.device("cpu")})

        FullyShardedDataParallel.__init__ = on_cpu  # type: ignore[method-assign]
        try:
            return super()._setup_model(model)
        finally:
            FullyShardedDataParallel.__init__ = make  # type: ignore[method-assign]


def strategy(job: dict[str, Any]) -> Any:
    if job["kind"] == "single":
        return "auto"
    if job["kind"] == "fsdp1":
        return CpuFSDP(state_dict_type=job["dict"])
    if job["kind"] == "ddp":
        return "ddp" if RANKS > 1 else "auto"
    return ModelParallelStrategy(
        data_parallel_size=job.get("dp", RANKS), tensor_parallel_size=job.get("tp", 1)
    )


def counted(trainer: L.Trainer, report: Report) -> None:
    """Count what torch.distributed is asked for in each save."""
    calls = [0]
    for name, function in list(vars(dist).items()):
        if callable(function) and name in COLLECTIVES:
            setattr(dist, name, _counting(function, calls))
            setattr(dist.distributed_c10d, name, getattr(dist, name))
    save = trainer.save_checkpoint

    def saving(*args: Any, **kwargs: Any) -> None:
        before = calls[0]
        save(*args, **kwargs)
        report.collectives.append(calls[0] - before)

    trainer.save_checkpoint = saving  # type: ignore[method-assign]


COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "scatter",
    "scatter_object_list",
)


def _counting(function: Any, calls: list[int]) -> Any:
    def count(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return function(*args, **kwargs)

    return count


def kill_worker_at_end() -> None:
    """Let the worker of this rank die when the rank begins to wait for rank 0, at the last step."""
    save_end = InterimSaves.save_end

    def killing(*args: Any) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        save_end(*args)

    InterimSaves.save_end = killing  # type: ignore[method-assign]


def fit(job: dict[str, Any]) -> None:
    process_fits.clear()
    if job.get("lose") == RANK:  # the node has a new, empty disk
        shutil.rmtree(job["root"])
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    L.seed_everything(job.get("seed", 1), verbose=False)
    report = Report(job)
    if "worker_stops_at" in job and job["dying"] == RANK:
        kill_worker_at_end()
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=strategy(job),
        devices=1,
        num_nodes=RANKS,
        max_epochs=job.get("epochs", 2),
        callbacks=[
            BTLightning(dir=job["root"], fit_name="one", **job.get("bt", {})),
            ModelCheckpoint(
                **{"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}
                | job.get("save", {})
            ),
            report,
        ],
        default_root_dir=job["root"],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **job.get("trainer", {}),
    )
    if job.get("count"):
        counted(trainer, report)
    torch.manual_seed(3)
    module = Net(job)
    loader = DataLoader(Rows(), batch_size=job.get("batch", 4), shuffle=True)
    validation = DataLoader(Rows(8), batch_size=4) if job.get("validates") else None
    trainer.fit(module, loader, validation, ckpt_path=job.get("ckpt_path"))
    if job.get("validates"):
        best = trainer.validate(module, validation, ckpt_path="best", verbose=False)
        (Path(job["out"]) / f"validated-{RANK}.json").write_text(json.dumps(best))


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        fit(each)
