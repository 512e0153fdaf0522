"""Exports a checkpoint as a `.ckpt` file, the format that Lightning itself writes and reads.

The file is pickled with tensors that have no memory behind them yet; then the bytes of each are
read and written in turn. So memory holds the largest tensor, not the state. (A directory of torch's
DCP is loaded whole.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.localdir.fsync import sync_directory, write_file
from bt_lightning.restore.dcp_folder import DCP
from bt_lightning.restore.decode_tree import names_needed_on_host
from bt_lightning.restore.load_checkpoint import TreeLoading, load_checkpoint
from bt_lightning.restore.saved_tensors import open_tensors, read_whole, referenced
from bt_lightning.restore.weights_without_base import WeightsWithoutBase
from bt_lightning.snapshot.state_pickle import pickle_state
from bt_lightning.snapshot.torch_file import lay_out_storages, without_storages
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.restore.saved_tensors import SavedTensors
    from bt_lightning.snapshot.state_pickle import PickledState
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_NAME: Final = "archive.ckpt"
"""`torch.save` calls the folder in a file so, if it is given an open one."""
_BATCH_BYTES: Final = 64 * 1024 * 1024
"""Small tensors that are read at once: they share blocks."""


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
        UnsupportedStateError: a value cannot be pickled.
        OSError: the file cannot be written.
    """
    deferred = _DeferredTensors(open_tensors(reader))
    if reader.manifest.format == DCP:
        state = load_checkpoint(reader, map_location="cpu", weights_only=not trust_pickle)
    else:
        loading = TreeLoading(reader, map_location="cpu", weights_only=not trust_pickle)
        state = loading.load(deferred.stand_ins)
    weights = state.get(WEIGHTS_KEY)
    left_out = 0
    if isinstance(weights, WeightsWithoutBase):
        left_out = len(weights.table.tensors)
        state[WEIGHTS_KEY] = weights.plain()  # no class of ours: others read it
    part = file.with_name(f".{file.name}.part")
    write_file(part, part.name, _pieces(pickle_state(state, _NAME, grouped=False), deferred))
    part.replace(file)
    sync_directory(file.parent)
    return left_out


def _pieces(pickled: PickledState, deferred: _DeferredTensors) -> Iterator[memoryview | bytes]:
    """The bytes of the file, in order."""
    storages = pickled.storages
    if not storages:
        yield without_storages(_NAME, pickled.data)
        return
    sizes = [storage.nbytes for storage in storages.values()]
    layout = lay_out_storages(_NAME, pickled.data, sizes)
    yield from layout.pieces(pickled.data, _Storages(storages, deferred))


class _DeferredTensors:
    """Tensors of a checkpoint whose bytes are not read yet."""

    def __init__(self, tensors: SavedTensors) -> None:
        self._tensors = tensors
        self._places: dict[int, tuple[str, str]] = {}
        """Address of a stand-in's storage -> label and name of the tensor."""
        self._kept: list[torch.Tensor] = []
        """All stand-ins: no other tensor may get the address of one."""

    def stand_ins(self, everything: list[Any]) -> dict[str, dict[str, torch.Tensor]]:
        """A tensor for each that the tree refers to; memory that nobody touches is not taken.

        What decoding needs the values of is read.
        """
        needed = names_needed_on_host(everything)
        found, _ = read_whole(self._tensors, needed)
        for label, name in sorted(referenced(everything) - needed):
            saved = self._tensors.find(label, name)
            tensor = torch.empty(saved.shape, dtype=saved.dtype, device="cpu")
            found.setdefault(label, {})[name] = tensor
            self._kept.append(tensor)
            if tensor.numel():
                self._places[tensor.untyped_storage().data_ptr()] = label, name
        return found

    def place(self, storage: torch.Tensor) -> tuple[str, str] | None:
        """Label and name of the tensor for which a storage stands; None if it is a real one."""
        return self._places.get(storage.untyped_storage().data_ptr())

    def read(self, places: list[tuple[str, str]]) -> dict[tuple[str, str], torch.Tensor]:
        """The tensors themselves."""
        found, _ = read_whole(self._tensors, places)
        return {(label, name): found[label][name] for label, name in places}


class _Storages(Mapping[str, torch.Tensor]):
    """The storages of a file by their names; each is asked for once, in their order."""

    def __init__(self, storages: Mapping[str, torch.Tensor], deferred: _DeferredTensors) -> None:
        self._storages, self._deferred = storages, deferred
        self._names = list(storages)
        self._next = 0
        self._ready: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self._deferred.place(self._storages[name])
        if place is None:
            return self._storages[name]
        if name not in self._ready:
            self._read_from(name)
        return self._ready.pop(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read_from(self, first: str) -> None:
        """Read the tensor of this name, and those behind it that are small."""
        self._ready.clear()
        batch: dict[str, tuple[str, str]] = {}
        size = 0
        for name in self._names[self._names.index(first, self._next) :]:
            place = self._deferred.place(self._storages[name])
            size += self._storages[name].nbytes
            if batch and size > _BATCH_BYTES:
                break
            if place is not None:
                batch[name] = place
        self._next = self._names.index(first, self._next)
        read = self._deferred.read(list(batch.values()))
        self._ready = {name: read[place] for name, place in batch.items()}
