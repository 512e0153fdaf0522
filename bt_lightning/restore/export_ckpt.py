"""Exports a checkpoint as a `.ckpt` file, the format that Lightning itself writes and reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from bt_lightning.localdir.fsync import sync_directory
from bt_lightning.restore.load_checkpoint import load_checkpoint
from bt_lightning.restore.weights_without_base import WeightsWithoutBase
from bt_lightning.snapshot.encoding_cache import WEIGHTS_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


def write_ckpt(reader: CheckpointReader, file: Path, *, trust_pickle: bool) -> int:
    """Write a committed checkpoint to `file`, fsynced, then renamed to its name.

    Tensors are on the CPU. `trust_pickle` also exports values that were saved with pickle, which
    runs code of the checkpoint.

    Returns:
        How many frozen tensors of its base the checkpoint left out: the file lacks them too.

    Raises:
        CheckpointNotFoundError: it was deleted meanwhile.
        CheckpointCorruptError: the checkpoint is damaged.
        UnsafeLoadError: a part of it needs `trust_pickle`.
        OSError: the file cannot be written.
    """
    state = load_checkpoint(reader, map_location="cpu", weights_only=not trust_pickle)
    weights = state.get(WEIGHTS_KEY)
    left_out = 0
    if isinstance(weights, WeightsWithoutBase):
        left_out = len(weights.table.tensors)
        state[WEIGHTS_KEY] = weights.plain()  # no class of ours: others read it
    part = file.with_name(f".{file.name}.part")
    with part.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
    sync_directory(file.parent)
    return left_out
