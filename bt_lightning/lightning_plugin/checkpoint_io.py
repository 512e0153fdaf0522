"""`BTCheckpointIO`: how a checkpoint dictionary becomes a durable directory, and comes back."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.errors import (
    CheckpointNotFoundError,
)
from bt_lightning.lightning_plugin.compat import takes_weights_only
from bt_lightning.lightning_plugin.compat_logger_artifacts import teach_loggers
from bt_lightning.lightning_plugin.compat_patched_functions import (
    teach_file_exists,
    teach_load_from_checkpoint,
)
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import (
    CheckpointIO,
    TorchCheckpointIO,
    accept_in_both,
    attribute_dicts,
)
from bt_lightning.localdir.atomic_directory import delete_directory, sweep, tidy
from bt_lightning.localdir.protection import is_protected_local
from bt_lightning.restore.load_checkpoint import load_checkpoint, load_file
from bt_lightning.session.bt_and_evicted_paths import StorePaths, store_paths_for
from bt_lightning.session.checkpoint_paths import (
    downloaded,
    is_committed,
    is_temporary,
    is_url,
    local_path,
    reader_of_url,
    url_reader,
)
from bt_lightning.session.checkpoint_writer import CheckpointWriter
from bt_lightning.session.save_at_url import remove_at_url, save_at_url
from bt_lightning.settings import torch_weights_only
from bt_lightning.store.interface import redact
from bt_lightning.store.transfer.checkpoint_reader import DirectoryReader
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.compat_patched_functions import Load
    from bt_lightning.restore.load_checkpoint import MapLocation
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


class BTCheckpointIO(CheckpointIO):
    """Reads and writes checkpoints as directories: safetensors, a typed tree, a manifest.

    Usable alone, `Trainer(plugins=[BTCheckpointIO()])` or `Fabric(plugins=[BTCheckpointIO()])`;
    `BTLightning` installs one by itself. Called by Lightning on rank 0 (saving, removing) and on
    every rank (loading). Paths may be local or URLs of any fsspec filesystem; stock `.ckpt` files
    are loaded as well, and checkpoints by their `bt://` names.

    Args:
        allowed: classes, beyond the built-in ones and `torch.serialization.add_safe_globals`, that
            a checkpoint may hold instances of and that loading may rebuild; and functions that it
            may name.
        store: URL of the store that `bt://` paths are looked up in; `$BT_STORE_URL`.
        storage_options: keyword arguments of that store's fsspec filesystem.
    """

    def __init__(
        self,
        allowed: Iterable[object] = (),
        *,
        store: str | None = None,
        storage_options: Mapping[str, object] | None = None,
    ) -> None:
        self.allowed: tuple[object, ...] = tuple(allowed)
        self.bt = StorePaths(store, dict(storage_options or {}))
        """Where `bt://` paths lead."""
        self.writer = CheckpointWriter(self.classes)
        """How a dictionary becomes a directory on this disk."""
        self._plain = TorchCheckpointIO()
        accept_in_both(type(self))

    @override
    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Mapping[str, object] | None = None,
    ) -> None:
        """Commit `checkpoint` at `path`; it is durable and whole when this returns.

        Args:
            checkpoint: tensors of any shape, dtype and device, and values of most types.
            path: a directory to be, local or a URL; what is committed there is replaced whole.
            storage_options: of the fsspec filesystem, for a URL.

        Raises:
            OSError: the disk refused; what was at `path` before is untouched.
            StoreError: the store refused.
            UnsupportedStateError: a value can be neither encoded nor pickled.
        """
        if is_temporary(path):
            self._plain.save_checkpoint(checkpoint, path, storage_options)
            return
        if not is_url(path):
            if storage_options is not None:
                msg = "storage_options belong to a URL; the path given is local"
                raise TypeError(msg)
            final = local_path(path)
            sweep(final.parent)
            self.writer.save(checkpoint, final, final.parent)
            tidy(final.parent)
            return
        save_at_url(str(path), storage_options, partial(self.writer.save, checkpoint))

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: MapLocation = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load what was saved at `path`, verified byte by byte.

        Args:
            path: a committed directory or a stock `.ckpt` file, local or a URL.
            map_location: as `torch.load` takes it; None loads to the CPU.
            weights_only: False also loads `leftovers.pt` and any importable class, which runs code
                that the file names. Otherwise no pickle is read unasked.

        Raises:
            CheckpointNotFoundError: nothing is committed at `path`.
            CheckpointCorruptError: bytes are missing or changed.
            UnsafeLoadError: it holds what only `weights_only=False` may load.
        """
        weights_only = torch_weights_only(os.environ, given=weights_only)
        options: dict[str, Any] = {"map_location": map_location, "weights_only": weights_only}
        if is_temporary(path):
            given = options if takes_weights_only(self._plain.load_checkpoint) else {}
            return self._plain.load_checkpoint(path, **given)
        if is_bt(path):
            return self.load_place(self.bt.reader(str(path)), **options)
        if is_url(path):
            stored = url_reader(str(path))
            if stored is not None:
                return self.load_place(stored, **options)
            try:
                with downloaded(str(path)) as file:
                    return load_file(file, **options)
            except CheckpointNotFoundError as error:
                raise CheckpointNotFoundError(_missing(path)) from error
        source = local_path(path)
        if source.is_dir():
            with DirectoryReader(source) as place:
                return self.load_place(place, **options)
        if not source.exists():
            raise CheckpointNotFoundError(_missing(path))
        return load_file(source, **options)

    def load_place(self, place: CheckpointReader, **options: Any) -> dict[str, Any]:
        """As `load_checkpoint`, of what lies there."""
        given = torch_weights_only(os.environ, given=options.pop("weights_only", None))
        return load_checkpoint(
            place,
            allowed=self.classes(),
            live_objects=self.writer.live_objects,
            weights_only=given,
            **options,
        )

    def classes(self) -> tuple[object, ...]:
        """What a checkpoint may hold instances of, beyond what every load knows."""
        return (*self.allowed, *attribute_dicts())

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the checkpoint at `path`, its name first; one that is protected stays."""
        if is_temporary(path):
            self._plain.remove_checkpoint(path)
            return
        if is_url(path):
            remove_at_url(str(path))
            return
        target = local_path(path)
        if is_protected_local(target):
            return
        if target.is_dir() and not target.is_symlink():
            delete_directory(target, target.parent)
            tidy(target.parent)
        else:
            target.unlink(missing_ok=True)


def _missing(path: str | Path) -> str:
    """Begins as Lightning's own message does: people look for that text."""
    return f"Checkpoint file not found: {redact(str(path))}"


def _find(path: str | os.PathLike[str]) -> Load | None:
    """How `load_from_checkpoint` loads what is ours at `path`; None of what is Lightning's."""
    io, text = BTCheckpointIO(), os.fspath(path)
    if is_bt(text) or is_committed(text):
        return partial(io.load_checkpoint, text)
    source = None if is_url(text) else store_paths_for(text)
    place = reader_of_url(text) if source is None else source.reader(text)
    if place is None:
        return None
    return lambda device, weights_only: io.load_place(
        place, map_location=device, weights_only=weights_only
    )


def _writes(path: str, trainer: Trainer) -> bool:
    """Whether one of ours writes the checkpoints of this Trainer that have such URLs."""
    io: object = trainer.strategy.checkpoint_io
    while not isinstance(io, BTCheckpointIO):
        io = getattr(io, "inner", None) or getattr(io, "checkpoint_io", None)  # what wraps another
        if io is None:
            return False
    return is_url(path) and not is_bt(path)


def _is_taken(path: str) -> bool:
    """Whether a checkpoint is committed there: a later generation has a folder of another name."""
    return reader_of_url(path) is not None


def teach_lightning() -> None:
    """Let functions of Lightning that work past the IO know what is ours; idempotent."""
    teach_load_from_checkpoint(_find)
    teach_file_exists(_writes, _is_taken)
    teach_loggers()


teach_lightning()
