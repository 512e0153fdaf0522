"""Loads a committed checkpoint, or a stock `.ckpt` file, as the dictionary that was saved."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.checkpoint_formats.sharded_folders import DEEPSPEED
from bt_lightning.errors import InvalidSettingError
from bt_lightning.path_layout import TREE
from bt_lightning.restore.dcp_folder import DCP, directory_reader, load_dcp
from bt_lightning.restore.decode_tree import Decoder
from bt_lightning.restore.load_to_device import HOST, DeviceMemory
from bt_lightning.restore.optimizer_states import numbered
from bt_lightning.restore.rank_states import rank_states
from bt_lightning.restore.read_documents import parts_of_tree, read_leftovers, read_tree
from bt_lightning.restore.tensors_of_tree import tensors_of_tree
from bt_lightning.restore.unloaded_value import UnloadedValue
from bt_lightning.restore.unpickle_leftovers import Leftovers
from bt_lightning.restore.weights_without_base import load_base_table, without_base
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.encode_tree import KIND
from bt_lightning.snapshot.shard_files import PACKAGE
from bt_lightning.snapshot.shared_tensors import TENSOR_FILES
from bt_lightning.traces import traced_restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from bt_lightning.restore.first_read import FirstRead
    from bt_lightning.restore.live_objects import LiveObjects
    from bt_lightning.restore.load_to_device import TensorMemory
    from bt_lightning.restore.read_documents import MapLocation
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_HYPER_PARAMETERS = "hyper_parameters"
_RANKS = "ranks"
"""Key below that of the package for what each rank saved as its own."""
_ELSEWHERE = ("tensor", "numpy.ndarray", "sparse_coo", "sparse_compressed", "deep")
"""Kinds of nodes whose values are not in the tree, or not at their place."""


def load_directory(
    path: Path,
    *,
    map_location: MapLocation = None,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
) -> dict[str, Any]:
    """Load the checkpoint at `path` on this disk, ours or DCP's, with `load_checkpoint`.

    Raises:
        CheckpointNotFoundError: nothing is committed at `path`.
        CheckpointCorruptError, UnsafeLoadError: as `load_checkpoint`.
    """
    with directory_reader(path) as reader:
        return load_checkpoint(
            reader, map_location=map_location, weights_only=weights_only, allowed=allowed
        )


@traced_restore(lambda reader: reader.manifest)
def load_checkpoint(  # noqa: PLR0913 - what to read, how, and where to
    reader: CheckpointReader,
    *,
    map_location: MapLocation = None,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
    live_objects: LiveObjects | None = None,
    first_read: FirstRead | None = None,
) -> dict[str, Any]:
    """Load a committed checkpoint from a disk or a store; each byte is verified by the manifest.

    Tensors are on the CPU, or on the device of `map_location`; those for CUDA are sent while others
    are read, so that the host never has all of them. Unless `weights_only` is False, no pickle is
    read, and only allowed classes are restored: a built-in table,
    `torch.serialization.add_safe_globals`, `allowed`, and those in `live_objects`. An object of
    `live_objects` also replaces an equal one that was pickled. Needs no local disk. Weights whose
    base is not in the checkpoint are a `WeightsWithoutBase`. Of a sharded checkpoint tensors are
    whole, and states of optimizers are numbered, as a plain optimizer takes them;
    `["bt_lightning"]["ranks"]` is a list of what each rank saved as its own. What `first_read`
    kept of the checkpoint is not read again.

    Raises:
        InvalidSettingError: `map_location` names a device that torch cannot use here; or it is a
            folder of DeepSpeed.
        CheckpointCorruptError: bytes are missing or changed.
        UnsafeLoadError: it has values that only `weights_only=False` loads.
        StoreError: the store failed.
    """
    target = _target(map_location)
    memory = _memory_for(target)
    if reader.manifest.format == DCP:
        return load_dcp(
            reader,
            memory,
            move=_mover(target),
            map_location=map_location,
            weights_only=weights_only,
        )

    if reader.manifest.format == DEEPSPEED:
        msg = (
            f"{reader.name} is a folder of DeepSpeed, which its engine alone reads: resume from it"
            " with DeepSpeedStrategy, or make one file of its weights by the zero_to_fp32.py in it"
        )
        raise InvalidSettingError(msg)

    def read(everything: list[Any]) -> Mapping[str, Mapping[str, torch.Tensor]]:
        wanted = first_read if memory is HOST else None
        kept = None if wanted is None else wanted.take(reader.manifest)
        return tensors_of_tree(reader, everything, memory) if kept is None else kept

    return TreeLoading(reader, map_location, weights_only, allowed, live_objects).load(read)


@dataclass(frozen=True)
class TreeLoading:
    """A load as `load_checkpoint` does it, of which somebody else provides the tensors."""

    reader: CheckpointReader
    map_location: MapLocation = None
    weights_only: bool | None = None
    allowed: Iterable[object] = ()
    live_objects: LiveObjects | None = None

    def load(
        self, read: Callable[[list[Any]], Mapping[str, Mapping[str, torch.Tensor]]]
    ) -> dict[str, Any]:
        """The dictionary that was saved.

        `read` is called once with the parts of the tree; it returns the tensors to which they
        refer, by the labels of files and names.
        """
        reader = self.reader
        document, base = read_tree(reader), load_base_table(reader)
        found = read(parts_of_tree(document))
        tensors = {label: found.get(label, {}) for label in {*TENSOR_FILES, *found}}
        trusted = self.weights_only is False
        unpickled = read_leftovers(reader, self.map_location) if trusted else None
        names = self.live_objects.names if self.live_objects else None
        classes = ClassTable(self.allowed, names, trusted=trusted)
        leftovers = Leftovers(document, unpickled, self.live_objects)
        decoder = Decoder(tensors, leftovers, classes, move=_mover(_target(self.map_location)))
        deep = document.get("deep", ())
        checkpoint = decoder.decode(document["tree"], f"{reader.name}/{TREE}", deep)
        without_base(checkpoint, base, reader.name)
        if reader.manifest.is_sharded:
            checkpoint |= numbered(checkpoint)
            own = rank_states(
                reader,
                weights_only=self.weights_only,
                allowed=self.allowed,
                live_objects=self.live_objects,
            )
            checkpoint[PACKAGE] = {**checkpoint.get(PACKAGE, {}), _RANKS: own}
        if decoder.not_loaded and self.live_objects is None:  # a live module has hyperparameters
            warnings.warn(
                f"left out of {reader.name}, as their classes are not allowed:"
                f" {', '.join(decoder.not_loaded)}."
                " Using one raises an error; weights_only=False loads them",
                stacklevel=3,
            )
        return checkpoint  # type: ignore[no-any-return]


def load_hyperparameters(
    reader: CheckpointReader, *, allowed: Iterable[object] = ()
) -> dict[str, Any]:
    """The hyperparameters of the module in a committed checkpoint, without those that need pickle.

    Tensors are read only if there are some among them.

    Raises:
        CheckpointCorruptError, StoreError: as `load_checkpoint`.
    """
    if reader.manifest.entry(TREE) is None:
        return {}  # of another program's layout
    tree = read_tree(reader)["tree"]
    part = tree.get(_HYPER_PARAMETERS, {}) if isinstance(tree, dict) else {}
    if _lies_elsewhere(part):
        found = load_checkpoint(reader, allowed=allowed)
    else:
        decoder = Decoder({}, Leftovers({}, None, None), ClassTable(allowed, None, trusted=False))
        found = decoder.decode({_HYPER_PARAMETERS: part}, f"{reader.name}/{TREE}")
    values = dict(found[_HYPER_PARAMETERS])
    return {name: value for name, value in values.items() if not isinstance(value, UnloadedValue)}


def _lies_elsewhere(node: object) -> bool:
    """Whether a part of the tree has values outside of it: of tensors, or nested too deeply."""
    if isinstance(node, dict):
        return node.get(KIND) in _ELSEWHERE or any(map(_lies_elsewhere, node.values()))
    return isinstance(node, list) and any(map(_lies_elsewhere, node))


def _target(map_location: MapLocation) -> torch.device | Callable[..., Any] | None:
    """The device or function for CPU tensors that `map_location` names; None: the CPU."""
    if isinstance(map_location, dict):
        map_location = map_location.get("cpu")
    if map_location is None or callable(map_location):
        return map_location
    try:
        return torch.empty(0, device=map_location).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        msg = f"map_location is {str(map_location)!r}, which torch cannot use here: {reason}"
        raise InvalidSettingError(msg) from error


def _memory_for(target: torch.device | Callable[..., Any] | None) -> TensorMemory:
    if isinstance(target, torch.device) and target.type == "cuda":
        return DeviceMemory(target)
    return HOST


def _mover(
    target: torch.device | Callable[..., Any] | None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that moves a tensor to the target device."""
    if target is None:
        return lambda tensor: tensor
    if isinstance(target, torch.device):
        return lambda tensor: tensor.to(target)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        dense = tensor.layout is torch.strided
        storage = (
            tensor.untyped_storage() if dense else torch.empty(0, device="cpu").untyped_storage()
        )
        moved = target(storage, "cpu")
        return tensor if moved is None else tensor.to(moved.device)

    return move
