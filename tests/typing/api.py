"""The public names as a user types them; checked by mypy, never run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.fabric import Fabric

import bt_lightning
from bt_lightning import BTCheckpointIO, BTLightning, BTModelCheckpoint, Checkpointer
from bt_lightning.truss_definitions import (
    BasetenCheckpoint,
    CheckpointingConfig,
    Image,
    LoadCheckpointConfig,
    Runtime,
    TrainingJob,
    as_definition,
)


def train(module: L.LightningModule) -> None:
    callback = BTLightning(
        dir=Path("ck"),
        store="s3://bucket/runs",
        resume="require",
        strict=False,
        on_error="warn",
        drain_timeout=timedelta(minutes=5),
        storage_options={"anon": False},
        snapshot="lazy",
        overlap="latest",
        arenas=2,
        arena_memory=64 * 2**30,
    )
    saver = BTModelCheckpoint(monitor="val_loss", every_n_train_steps=500, save_last="link")
    trainer = L.Trainer(callbacks=[callback, saver])
    path: str | None = bt_lightning.resume_path()
    trainer.fit(module, ckpt_path=path)


def save(fabric: Fabric) -> dict[str, torch.Tensor]:
    io = BTCheckpointIO(allowed=[Path])
    io.save_checkpoint({"weight": torch.zeros(1)}, "checkpoint-1")
    try:
        return dict(io.load_checkpoint("checkpoint-1", map_location="cpu", weights_only=True))
    except bt_lightning.CheckpointCorruptError as error:
        raise ValueError(error.message) from error


def loop(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    with Checkpointer(Path("ck"), "s3://bucket/runs", keep=3, job="j") as ck:
        state = ck.load_latest({"model": model, "optimizer": optimizer, "step": 0})
        ck.step()
        ck.save(state, 1, epoch=0, metrics={"loss": 0.5})
        return state


def steps(file: str) -> list[str]:
    config = CheckpointingConfig(enabled=True, volume_size_gib=500)
    earlier = BasetenCheckpoint.from_latest_checkpoint(project_name="p")
    runtime = Runtime(
        checkpointing_config=config,
        load_checkpoint_config=LoadCheckpointConfig(enabled=True, checkpoints=[earlier]),
    )
    job = TrainingJob(image=Image(base_image="python:3.11"), runtime=runtime)
    taken: TrainingJob = as_definition(job.model_dump(mode="json"), TrainingJob)
    return [*bt_lightning.load_config(file).job.runtime.start_commands, repr(taken)]
