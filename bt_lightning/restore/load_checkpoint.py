"""A committed checkpoint directory, or a stock file, back to the dictionary that was saved."""

from __future__ import annotations

import json
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import CheckpointCorruptError, InvalidSettingError
from bt_lightning.layout import LEFTOVERS, STATE, TREE, WEIGHTS
from bt_lightning.restore.decode_tree import Decoder, on_host
from bt_lightning.restore.load_to_device import HOST, DeviceMemory
from bt_lightning.restore.read_tensors import read_tensors, read_whole_file
from bt_lightning.restore.unpickle_leftovers import Leftovers
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.store.transfer.checkpoint_reader import DirectoryReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from bt_lightning.restore.live_objects import LiveObjects
    from bt_lightning.restore.load_to_device import TensorMemory
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

    MapLocation = torch.device | str | Callable[..., Any] | dict[str, str] | None


def load_directory(
    path: Path,
    *,
    map_location: MapLocation = None,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
) -> dict[str, Any]:
    """`load_checkpoint` the checkpoint that is committed at `path` on this disk.

    Raises:
        CheckpointNotFoundError: nothing is committed at `path`.
        CheckpointCorruptError, UnsafeLoadError: as `load_checkpoint`.
    """
    with DirectoryReader(path) as place:
        return load_checkpoint(
            place, map_location=map_location, weights_only=weights_only, allowed=allowed
        )


def load_checkpoint(
    place: CheckpointReader,
    *,
    map_location: MapLocation = None,
    weights_only: bool | None = None,
    allowed: Iterable[object] = (),
    held: LiveObjects | None = None,
) -> dict[str, Any]:
    """Load a committed checkpoint from a disk or a store, each byte verified by its manifest.

    Tensors come back in CPU memory, or where `map_location` says; a CUDA device that it names gets
    them while others arrive, and the host never holds them all. Unless `weights_only` is False, no
    pickle is read and only known classes are rebuilt: the built-in table, those of
    `torch.serialization.add_safe_globals`, `allowed`, and what `held` finds in this process, which
    also stands for equal objects that were pickled. Needs no disk.

    Raises:
        InvalidSettingError: `map_location` names a device that torch cannot use here.
        CheckpointCorruptError: bytes are missing or changed.
        UnsafeLoadError: it holds what only `weights_only=False` may load.
        StoreError: the store refused.
    """
    target = _target(map_location)
    entries = {"weights": place.manifest.entry(WEIGHTS), "state": place.manifest.entry(STATE)}
    document = _document(place)
    home = _home(target)
    found = read_tensors(
        place,
        {label: entry for label, entry in entries.items() if entry},
        home,
        () if home is HOST else on_host([document["tree"], document.get("deep")]),
    )
    tensors = {label: found.get(label, {}) for label in entries}
    unpickled = _unpickled(place, map_location) if weights_only is False else None
    classes = ClassTable(
        allowed, held.names if held is not None else None, trusted=weights_only is False
    )
    decoder = Decoder(tensors, Leftovers(document, unpickled, held), classes, move=_mover(target))
    deep = document.get("deep", ())
    checkpoint = decoder.decode(document["tree"], f"{place.name}/{TREE}", deep)
    if decoder.holes and held is None:  # who holds a module has its hyperparameters
        warnings.warn(
            f"left out of {place.name}, as nobody allowed to load them:"
            f" {', '.join(decoder.holes)}."
            " Using one raises an error; weights_only=False loads them",
            stacklevel=2,
        )
    return checkpoint  # type: ignore[no-any-return]


def load_file(
    path: object, map_location: MapLocation = None, *, weights_only: bool | None = None
) -> dict[str, Any]:
    """Load a stock `.ckpt` with `torch.load`; pickled code runs only with `weights_only=False`."""
    return torch.load(  # type: ignore[no-any-return]
        path,  # type: ignore[arg-type]
        map_location="cpu" if map_location is None else map_location,
        weights_only=weights_only is not False,
    )


def _target(map_location: MapLocation) -> torch.device | Callable[..., Any] | None:
    """Where `map_location`, as `torch.load` takes it, wants CPU tensors; None: where they are."""
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


def _home(target: torch.device | Callable[..., Any] | None) -> TensorMemory:
    if isinstance(target, torch.device) and target.type == "cuda":
        return DeviceMemory(target)
    return HOST


def _mover(
    target: torch.device | Callable[..., Any] | None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What brings a tensor to where it is wanted."""
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


def _document(place: CheckpointReader) -> dict[str, Any]:
    entry = place.manifest.entry(TREE)
    if entry is None:
        msg = f"the checkpoint {place.name} is damaged: its manifest names no {TREE}"
        raise CheckpointCorruptError(msg)
    try:
        document = json.loads(read_whole_file(place, entry))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointCorruptError):
            raise
        msg = f"the checkpoint {place.name} is damaged: {TREE} is no JSON ({error})"
        raise CheckpointCorruptError(msg) from error
    if not isinstance(document, dict) or "tree" not in document:
        msg = f"the checkpoint {place.name} is damaged: {TREE} holds no tree"
        raise CheckpointCorruptError(msg)
    return document


def _unpickled(place: CheckpointReader, map_location: MapLocation) -> Mapping[str, object]:
    entry = place.manifest.entry(LEFTOVERS)
    if entry is None:
        return {}
    data = read_whole_file(place, entry)  # these very bytes are run: verified, and read once
    return load_file(BytesIO(data), map_location, weights_only=False)
