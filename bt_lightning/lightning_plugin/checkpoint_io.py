"""`BTCheckpointIO`: saves checkpoint dictionaries as durable directories, and loads them."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.errors import (
    CheckpointNotFoundError,
)
from bt_lightning.lightning_plugin.compat import takes_weights_only
from bt_lightning.lightning_plugin.compat_ckpt_path_of_cli import patch_ckpt_path_of_cli
from bt_lightning.lightning_plugin.compat_load_state_dict import patch_load_state_dict
from bt_lightning.lightning_plugin.compat_logger_artifacts import patch_loggers
from bt_lightning.lightning_plugin.compat_patched_functions import (
    patch_file_exists,
    patch_load_from_checkpoint,
)
from bt_lightning.lightning_plugin.compat_setup_order import patch_setup_order
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import (
    CheckpointIO,
    TorchCheckpointIO,
    accept_in_both,
    attribute_dicts,
)
from bt_lightning.localdir.atomic_directory import delete_directory, sweep, tidy
from bt_lightning.localdir.protection import is_protected_local
from bt_lightning.restore.dcp_folder import directory_reader
from bt_lightning.restore.load_checkpoint import load_checkpoint, load_hyperparameters
from bt_lightning.restore.read_documents import load_file
from bt_lightning.restore.shared_reads import others_read_too
from bt_lightning.session.bt_and_evicted_paths import StorePaths, store_paths_for
from bt_lightning.session.checkpoint_paths import (
    downloaded,
    is_committed,
    is_loadable,
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
from bt_lightning.store.transfer.files_reader import DirectoryReader
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.compat_patched_functions import Load
    from bt_lightning.restore.first_read import FirstRead
    from bt_lightning.restore.read_documents import MapLocation
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


class BTCheckpointIO(CheckpointIO):
    """Reads and writes checkpoints as directories: safetensors, a typed tree, a manifest.

    Usable alone, `Trainer(plugins=[BTCheckpointIO()])` or `Fabric(plugins=[BTCheckpointIO()])`;
    `BTLightning` installs one by itself. Called by Lightning on rank 0 (saving, removing) and on
    every rank (loading). Paths may be local or URLs of any fsspec filesystem; stock `.ckpt` files
    are loaded as well, and checkpoints by their `bt://` names.

    Args:
        allowed: classes and functions, besides the built-in ones and
            `torch.serialization.add_safe_globals`, that a load may restore.
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
        """Resolves `bt://` paths."""
        self.first_read: FirstRead | None = None
        """What is kept of the checkpoint that a run starts from."""
        self.writer = CheckpointWriter(self.classes)
        """Writes checkpoints to this disk."""
        self._plain = TorchCheckpointIO()
        accept_in_both(type(self))

    @override
    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Mapping[str, object] | None = None,
    ) -> None:
        """Commit `checkpoint` at `path`; it is durable and complete when this returns.

        Args:
            checkpoint: tensors of any shape, dtype and device, and values of most types.
            path: the directory to create, local or a URL; a checkpoint there is replaced.
            storage_options: keyword arguments of the fsspec filesystem, for a URL.

        Raises:
            OSError: the write failed; a checkpoint that was at `path` before is unchanged.
            StoreError: the store failed.
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
        """Load the checkpoint at `path`; every byte is verified.

        Args:
            path: a committed directory or a stock `.ckpt` file, local or a URL.
            map_location: as `torch.load` takes it; None loads to the CPU.
            weights_only: False also loads `leftovers.pt` and any importable class, which runs code
                that the file names. Otherwise no pickle is read.

        Raises:
            CheckpointNotFoundError: nothing is committed at `path`.
            CheckpointCorruptError: bytes are missing or changed.
            UnsafeLoadError: it has values that only `weights_only=False` loads.
        """
        weights_only = torch_weights_only(os.environ, given=weights_only)
        options: dict[str, Any] = {"map_location": map_location, "weights_only": weights_only}
        if is_temporary(path):
            given = options if takes_weights_only(self._plain.load_checkpoint) else {}
            return self._plain.load_checkpoint(path, **given)
        if is_bt(path):
            return self.load_from(self.bt.reader(str(path)), **options)
        if is_url(path):
            stored = url_reader(str(path))
            if stored is not None:
                return self.load_from(stored, **options)
            try:
                with downloaded(str(path)) as file:
                    return load_file(file, **options)
            except CheckpointNotFoundError as error:
                raise CheckpointNotFoundError(_missing(path)) from error
        source = local_path(path)
        if source.is_dir():
            with directory_reader(source, fills_cache=others_read_too()) as reader:
                return self.load_from(reader, **options)
        if not source.exists():
            raise CheckpointNotFoundError(_missing(path))
        return load_file(source, **options)

    def load_from(self, reader: CheckpointReader, **options: Any) -> dict[str, Any]:
        """As `load_checkpoint`, for a checkpoint that is open in `reader`."""
        given = torch_weights_only(os.environ, given=options.pop("weights_only", None))
        return load_checkpoint(
            reader,
            allowed=self.classes(),
            live_objects=self.writer.live_objects,
            weights_only=given,
            first_read=self.first_read,
            **options,
        )

    def classes(self) -> tuple[object, ...]:
        """Classes and functions that a load may restore besides the built-in ones."""
        return (*self.allowed, *attribute_dicts())

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the checkpoint at `path`, its manifest first; a protected one is kept."""
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
    """The same words as Lightning's own message, which people search for."""
    return f"Checkpoint file not found: {redact(str(path))}"


def _loader_for(path: str | os.PathLike[str]) -> Load | None:
    """A loader for `load_from_checkpoint` if `path` is one of our checkpoints; None otherwise."""
    io, text = BTCheckpointIO(), os.fspath(path)
    if is_bt(text) or is_loadable(text):
        return partial(io.load_checkpoint, text)
    source = None if is_url(text) else store_paths_for(text)
    reader = reader_of_url(text) if source is None else source.reader(text)
    if reader is None:
        return None
    return lambda device, weights_only: io.load_from(
        reader, map_location=device, weights_only=weights_only
    )


def _hyperparameters_of(path: str) -> dict[str, Any] | None:
    """The hyperparameters in `path` if it is one of our checkpoints; None otherwise."""
    io = BTCheckpointIO()
    if is_bt(path):
        return load_hyperparameters(io.bt.reader(path), allowed=io.classes())
    if is_url(path) or not is_committed(path):
        return None
    with DirectoryReader(local_path(path)) as reader:
        return load_hyperparameters(reader, allowed=io.classes())


def _is_our_url(path: str, trainer: Trainer) -> bool:
    """Whether `path` is a URL and a `BTCheckpointIO` writes the checkpoints of this Trainer."""
    io: object = trainer.strategy.checkpoint_io
    while not isinstance(io, BTCheckpointIO):
        io = getattr(io, "inner", None) or getattr(io, "checkpoint_io", None)  # of a wrapper
        if io is None:
            return False
    return is_url(path) and not is_bt(path)


def _is_taken(path: str) -> bool:
    """Whether a checkpoint is committed there; a later generation has a folder `name@2`."""
    return reader_of_url(path) is not None


def patch_lightning() -> None:
    """Patch the functions of Lightning that bypass the CheckpointIO; idempotent."""
    patch_load_from_checkpoint(_loader_for)
    patch_load_state_dict()
    patch_file_exists(_is_our_url, _is_taken)
    patch_loggers()
    patch_ckpt_path_of_cli(_hyperparameters_of)
    patch_setup_order()


patch_lightning()
