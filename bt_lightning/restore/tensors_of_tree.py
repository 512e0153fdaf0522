"""Reads the tensors to which a typed tree refers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.restore.decode_tree import names_needed_on_host
from bt_lightning.restore.load_to_device import HOST
from bt_lightning.restore.read_tensors import read_tensors
from bt_lightning.restore.saved_tensors import open_tensors, read_whole, referenced
from bt_lightning.snapshot.shard_encoding import SHARDS as SHARDED_LABEL
from bt_lightning.snapshot.shared_tensors import TENSOR_FILES

if TYPE_CHECKING:
    import torch

    from bt_lightning.restore.load_to_device import TensorMemory
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


def tensors_of_tree(
    reader: CheckpointReader, everything: list[Any], memory: TensorMemory
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors to which the parts of a tree refer: label of the file -> name -> tensor.

    Raises:
        CheckpointCorruptError, MemoryError, StoreError: as `read_tensors`.
    """
    entries = {label: reader.manifest.entry(path) for label, path in TENSOR_FILES.items()}
    on_host = set() if memory is HOST else names_needed_on_host(everything)
    there = {label: entry for label, entry in entries.items() if entry}
    tensors = read_tensors(reader, there, memory, on_host)
    names = {pair for pair in referenced(everything) if pair[0] == SHARDED_LABEL}
    if names and reader.manifest.is_sharded:
        tensors |= read_whole(open_tensors(reader), names, memory, on_host)[0]
    return tensors
