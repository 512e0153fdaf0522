"""Loads the checkpoint that a run starts from, for frameworks without a reader of their own."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.restore.dcp_folder import directory_reader
from bt_lightning.restore.load_checkpoint import load_checkpoint
from bt_lightning.restore.read_documents import load_file
from bt_lightning.restore.shared_reads import others_read_too

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.restore.first_read import FirstRead
    from bt_lightning.restore.read_documents import MapLocation
    from bt_lightning.session.options import Options
    from bt_lightning.session.start_point import StartPoint
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


def load_start_point(
    start: StartPoint,
    root: Path,
    options: Options,
    map_location: MapLocation = None,
    first_read: FirstRead | None = None,
) -> dict[str, Any] | None:
    """Every rank: the state dictionary of the start point; None to begin at step 0.

    Tensors come as with `load_checkpoint`. Where `start.warm`, the caller takes the weights only.
    `BT_WEIGHTS_ONLY=0` lets a job unpickle what lies under `root`, and nothing else.

    Raises:
        CheckpointCorruptError, StoreError, UnsafeLoadError: as `load_checkpoint`.
    """
    if start.path is None:
        return None
    path, weights_only = Path(start.path), trusted(start, root, options)
    if start.folder is not None or path.is_dir():
        shared = others_read_too()
        with open_start_point(start, root, options, fills_cache=shared) as reader:
            return load_checkpoint(
                reader,
                map_location=map_location,
                weights_only=weights_only,
                first_read=first_read,
            )
    return load_file(path, map_location=map_location, weights_only=weights_only)


def trusted(start: StartPoint, root: Path, options: Options) -> bool | None:
    """The `weights_only` of a load of the start point."""
    own = start.path is not None and Path(start.path).is_relative_to(root)
    return options.own_weights_only if own else options.weights_only


@contextlib.contextmanager
def open_start_point(
    start: StartPoint, root: Path, options: Options, *, fills_cache: bool = False
) -> Iterator[CheckpointReader]:
    """Every rank: the checkpoint that the run starts from, on the disk or in the store.

    `fills_cache` as of `directory_reader`.

    Raises:
        CheckpointNotFoundError: nothing is committed there.
        CheckpointCorruptError, StoreError: it cannot be read.
    """
    assert start.path is not None  # there is one
    if start.folder is not None and start.digest is not None:
        source = replace(options.source(root), prefix=start.prefix)
        source.pin(start.path, start.folder, start.digest)
        yield source.reader(start.path)
        return
    with directory_reader(Path(start.path), fills_cache=fills_cache) as reader:
        yield reader
