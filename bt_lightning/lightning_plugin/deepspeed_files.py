"""The files of DeepSpeed's engine: taken instead of written at a save, verified before a load.

DeepSpeed's own code decides what a file holds, and reads it. What it gives to its checkpoint engine
(`engine.checkpoint_engine`) is noted; `torch.load` is replaced while it loads.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import CheckpointCorruptError, UnsafeLoadError
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.list_and_verify_checkpoints import describe_damage
from bt_lightning.snapshot.folder_files import TorchFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.snapshot.folder_files import Content

TAG: Final = "checkpoint"
"""The folder in a checkpoint that DeepSpeed writes to, as Lightning names it."""
_CLASSES: Final = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""What DeepSpeed itself puts into its files beside tensors and plain values."""
_WASTE: Final = 2
"""A storage of more than so many times the bytes that are saved of it is not saved whole."""


class _NotingEngine:
    """Stands in for a checkpoint engine of DeepSpeed while it saves."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.noted: dict[Path, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def save(self, state_dict: Any, path: str) -> None:
        """Note the state of a file, as it is: what is not copied now is copied with the save."""
        self.noted[Path(path)] = state_dict

    @staticmethod
    def preserves_storage_sharing() -> bool:
        """Whether DeepSpeed is to clone all tensors first."""
        return False

    def create(self, *_: Any) -> None:
        """Nothing is made."""

    def commit(self, *_: Any) -> bool:
        """The commit is ours, and comes later."""
        return True


def take_files(engine: Any, folder: Path, client_state: dict[str, Any]) -> dict[str, Content]:
    """Every rank: the files that this rank's `engine.save_checkpoint` writes, by posix path.

    Runs the collectives of DeepSpeed's own save: two barriers, and two reductions that compare the
    tag. Their tensors are the live ones.

    Args:
        engine: the engine of DeepSpeed.
        folder: an empty folder of this rank, for what DeepSpeed writes by itself.
        client_state: what is saved beside the states of the engine, plain values and tensors.
    """
    before = vars(engine).get("checkpoint_engine")
    noting = _NotingEngine(engine.checkpoint_engine)
    engine.checkpoint_engine = noting
    try:
        engine.save_checkpoint(str(folder), tag=TAG, client_state=client_state)
    finally:
        engine.checkpoint_engine = before
    found: dict[str, Content] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        found[path.relative_to(folder).as_posix()] = path.read_bytes()
    for path, state in noting.noted.items():
        found[path.relative_to(folder).as_posix()] = TorchFile(_without_waste(state))
    return dict(sorted(found.items()))


def _without_waste(state: Any) -> Any:
    """`state` in containers of our own, its tensors without the rest of much larger storages."""
    stored: dict[int, set[tuple[int, int]]] = {}
    for tensor in _tensors(state):
        storage = tensor.untyped_storage()
        part = (tensor.data_ptr(), tensor.numel() * tensor.element_size())
        stored.setdefault(storage.data_ptr(), set()).add(part)

    def fit(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            saved = sum(size for _, size in stored[storage.data_ptr()])
            return value.detach().clone() if storage.nbytes() > _WASTE * saved else value
        if type(value) in {list, tuple}:
            return type(value)(fit(each) for each in value)
        if isinstance(value, dict):
            copied = value.copy()  # keeps the class, its order and its attributes
            for key, each in value.items():
                copied[key] = fit(each)
            return copied
        return value

    return fit(state)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif type(value) in {list, tuple}:
        for each in value:
            yield from _tensors(each)


@contextlib.contextmanager
def guarded_loads(
    folder: Path,
    files: Mapping[str, FileEntry] | None,
    allowed: Iterable[object],
    *,
    trusted: bool,
) -> Iterator[None]:
    """While DeepSpeed loads in this block, no byte is unpickled that was not saved.

    Each file that `torch.load` is given on this thread must have its digest, and may name no class
    but those that DeepSpeed saves and the allowed ones.

    Args:
        folder: the folder that is loaded from.
        files: posix path in it -> what was committed; None if nobody committed it.
        allowed: further classes and functions that files may name.
        trusted: whether they may name any; then code runs that they name.

    Raises:
        CheckpointCorruptError: from the block: a file differs from what was committed.
        UnsafeLoadError: from the block: a file names a class that is not allowed.
    """
    original, thread = torch.load, threading.get_ident()

    def load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread or not isinstance(f, str | os.PathLike):
            return original(f, *args, **kwargs)
        path = Path(os.path.abspath(f))  # noqa: PTH100 - links are not followed
        if files is not None:
            _check(folder, path, files)
        try:
            return original(f, *args, **{**kwargs, "weights_only": not trusted})
        except pickle.UnpicklingError as error:
            if trusted:
                raise
            raise UnsafeLoadError(_advice(path, error)) from error

    with _allowing(() if trusted else (*_own_classes(), *allowed)):
        torch.load = load
        try:
            yield
        finally:
            torch.load = original


def _check(folder: Path, path: Path, files: Mapping[str, FileEntry]) -> None:
    if not path.is_relative_to(folder):
        msg = f"{path} is loaded with the checkpoint {folder}, and is none of its files"
        raise CheckpointCorruptError(msg)
    name = path.relative_to(folder).as_posix()
    stated = files.get(name)
    if stated is None:
        msg = f"the checkpoint {folder} is damaged: its manifest names no {name}"
        raise CheckpointCorruptError(msg)
    found = digest_file(path, name, stated.block_bytes)
    if found != stated:
        raise CheckpointCorruptError(describe_damage(str(folder), stated, found))


def _advice(path: Path, error: pickle.UnpicklingError) -> str:
    reason = str(error).partition("\n")[0]
    return (
        f"{path} holds values that this load does not trust ({reason}). Allow their classes with"
        " torch.serialization.add_safe_globals, or load with weights_only=False if you trust the"
        " file. A job does so for its own checkpoints by BT_WEIGHTS_ONLY=0 or `bt-lightning run"
        " --trust-checkpoints`"
    )


def _own_classes() -> list[object]:
    found = (getattr(sys.modules.get(module), name, None) for module, name in _CLASSES)
    return [kind for kind in found if kind is not None]  # an engine has imported them


def _allowing(classes: Iterable[object]) -> contextlib.AbstractContextManager[Any]:
    named: list[Any] = list(classes)
    make: Callable[[list[Any]], contextlib.AbstractContextManager[Any]] | None
    make = getattr(torch.serialization, "safe_globals", None)
    if make is not None:
        found: contextlib.AbstractContextManager[Any] = make(named)
        return found
    torch.serialization.add_safe_globals(named)  # before torch 2.5 there is no end of it
    return contextlib.nullcontext()
