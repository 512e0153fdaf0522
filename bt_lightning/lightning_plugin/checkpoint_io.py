"""`BTCheckpointIO`: how a checkpoint dictionary becomes a durable directory, and comes back."""

from __future__ import annotations

import os
import warnings
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
)
from bt_lightning.layout import WEIGHTS, check_checkpoint_id
from bt_lightning.lightning_plugin.compat import takes_weights_only
from bt_lightning.lightning_plugin.compat_loggers import teach_loggers
from bt_lightning.lightning_plugin.compat_taught import (
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
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.disk_space import planned
from bt_lightning.localdir.local_checkpoints import read_manifest
from bt_lightning.localdir.protection import is_protected
from bt_lightning.manifest import FileEntry, Manifest
from bt_lightning.restore.load import load, load_file
from bt_lightning.session.checkpoint_paths import (
    downloaded,
    is_committed,
    is_temporary,
    is_url,
    local_path,
    place_of_url,
    stored_place,
    unwritten,
)
from bt_lightning.session.manifest_facts import EPOCHS, STEPS, first_count, versions
from bt_lightning.session.restart_needs import needs
from bt_lightning.session.serving_files import ServingFiles
from bt_lightning.session.store_paths import BtSource, source_of
from bt_lightning.session.url_checkpoints import remove_at, save_at
from bt_lightning.settings import torch_weights_only
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.state_files import Memory, Snapshot, take
from bt_lightning.store.interface import redact
from bt_lightning.store.transfer.checkpoint_reader import DirectoryPlace
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.compat_taught import Load
    from bt_lightning.restore.live_objects import Held
    from bt_lightning.restore.load import MapLocation
    from bt_lightning.store.transfer.checkpoint_reader import Place

EXTRA = "bt_lightning"
"""Key of the checkpoint dictionary under which `BTLightning` keeps what is its own."""


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
        self.bt = BtSource(store, dict(storage_options or {}))
        """Where `bt://` paths lead."""
        self.serving = ServingFiles()
        """What is written besides the checkpoint, for those who serve it."""
        self.origin: dict[str, Any] = {}
        """Facts for the manifest that a checkpoint dictionary does not hold."""
        self._plain = TorchCheckpointIO()
        self.held: Held | None = None
        """What the process holds by itself, so that it need not come from a checkpoint."""
        self.trusted = False
        """Whether a restart of this job will unpickle what its checkpoints hold."""
        self._warned = False
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
            self.save_local(checkpoint, final, final.parent)
            tidy(final.parent)
            return
        save_at(str(path), storage_options, partial(self.save_local, checkpoint))

    def save_local(
        self,
        checkpoint: dict[str, Any],
        final: Path,
        root: Path,
        after: int = 0,
        room: Callable[[int], None] = lambda _: None,
    ) -> Manifest:
        """Commit `checkpoint` as the directory `final` under `root`; the next generation of its id.

        That is one more than `final` holds now, and more than `after`. `room` is called with the
        bytes that it will take, before any is written.
        """
        checkpoint_id = check_checkpoint_id(final.relative_to(root).as_posix())
        snapshot = self.take(checkpoint)
        facts = self.facts(checkpoint, snapshot)

        def describe(entries: tuple[FileEntry, ...]) -> Manifest:
            number = 1 + max(after, _generation(final))
            return Manifest(checkpoint_id=checkpoint_id, generation=number, files=entries, **facts)

        room(planned(snapshot.sizes))
        try:
            return commit(final, root, snapshot.files, describe)
        except OSError as error:
            raise unwritten(checkpoint_id, root, error) from error

    def take(self, checkpoint: dict[str, Any], memory: Memory | None = None) -> Snapshot:
        """Lay out `checkpoint` as files, those for serving included; copies no tensor."""
        serving = self.serving
        snapshot = take(checkpoint, serving.weights_prefix, memory, serving.tensors())
        snapshot.small_files.update(serving.constant)
        self._warn_once(snapshot)
        return snapshot

    def facts(self, checkpoint: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
        """What the manifest says of `checkpoint`, without its files and generation."""
        return {
            "step": first_count(checkpoint, *STEPS),
            "epoch": first_count(checkpoint, *EPOCHS),
            "created_at": datetime.now(timezone.utc).isoformat(),
            "metrics": _extra(checkpoint, "metrics"),
            "origin": {**self.origin, "versions": dict(versions()), **_extra(checkpoint, "origin")},
            "resumable": "optimizer_states" in checkpoint,
            "weights_prefix": (
                self.serving.weights_prefix if WEIGHTS in snapshot.tensor_files else ""
            ),
            "leftovers": (*snapshot.leftovers, *snapshot.dropped),
        }

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
            return self.load_place(self.bt.place(str(path)), **options)
        if is_url(path):
            stored = stored_place(str(path))
            if stored is not None:
                return self.load_place(stored, **options)
            try:
                with downloaded(str(path)) as file:
                    return load_file(file, **options)
            except CheckpointNotFoundError as error:
                raise CheckpointNotFoundError(_missing(path)) from error
        source = local_path(path)
        if source.is_dir():
            with DirectoryPlace(source) as place:
                return self.load_place(place, **options)
        if not source.exists():
            raise CheckpointNotFoundError(_missing(path))
        return load_file(source, **options)

    def load_place(self, place: Place, **options: Any) -> dict[str, Any]:
        """As `load_checkpoint`, of what lies there."""
        given = torch_weights_only(os.environ, given=options.pop("weights_only", None))
        allowed = (*self.allowed, *attribute_dicts())
        return load(place, allowed=allowed, held=self.held, weights_only=given, **options)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the checkpoint at `path`, its name first; one that is protected stays."""
        if is_temporary(path):
            self._plain.remove_checkpoint(path)
            return
        if is_url(path):
            remove_at(str(path))
            return
        target = local_path(path)
        if is_protected(target):
            return
        if target.is_dir() and not target.is_symlink():
            delete_directory(target, target.parent)
            tidy(target.parent)
        else:
            target.unlink(missing_ok=True)

    def _warn_once(self, snapshot: Snapshot) -> None:
        """At the first save, say what a restart and other loads will need."""
        if self._warned:
            return
        self._warned = True
        for text in needs(snapshot, self._classes(), self.held, trusted=self.trusted):
            warnings.warn(text, stacklevel=4)

    def _classes(self) -> ClassTable:
        return ClassTable((*self.allowed, *attribute_dicts()))


def _missing(path: str | Path) -> str:
    """Begins as Lightning's own message does: people look for that text."""
    return f"Checkpoint file not found: {redact(str(path))}"


def _generation(final: Path) -> int:
    try:
        return read_manifest(final).generation
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return 0


def _extra(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What `BTLightning` added under `name`, if it did."""
    extra = checkpoint.get(EXTRA)
    found = extra.get(name) if isinstance(extra, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def _find(path: str | os.PathLike[str]) -> Load | None:
    """How `load_from_checkpoint` loads what is ours at `path`; None of what is Lightning's."""
    io, text = BTCheckpointIO(), os.fspath(path)
    if is_bt(text) or is_committed(text):
        return partial(io.load_checkpoint, text)
    source = None if is_url(text) else source_of(text)
    place = place_of_url(text) if source is None else source.place(text)
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
    return place_of_url(path) is not None


def teach_lightning() -> None:
    """Let functions of Lightning that work past the IO know what is ours; idempotent."""
    teach_load_from_checkpoint(_find)
    teach_file_exists(_writes, _is_taken)
    teach_loggers()


teach_lightning()
