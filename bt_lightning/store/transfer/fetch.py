"""A checkpoint of a store to a committed directory on this disk: verified, whole, durable."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    DirectoryFullError,
)
from bt_lightning.layout import (
    MANIFEST,
)
from bt_lightning.localdir.atomic_directory import discard, tidy
from bt_lightning.localdir.fsync import sync_directory, write_out
from bt_lightning.localdir.partial_downloads import partial, publish_partial
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.download import download_files

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manifest import FileEntry, Manifest
    from bt_lightning.store.interface import Store
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


def fetch(store: Store, prefix: str, folder: str, root: Path, final: Path) -> Manifest:
    """Bring one checkpoint of the store to the directory `final` under `root`, verified, whole.

    It appears in one rename, durable. A fetch that was killed or refused by the store left what it
    had under `root`; this one verifies that and goes on. Called in the worker.

    Raises:
        CheckpointNotFoundError: the folder holds no committed checkpoint.
        CheckpointCorruptError: what arrived is not what the manifest says; nothing is kept.
        DirectoryFullError: it does not fit on the disk; nothing is kept.
        StoreError: the store refused.
    """
    place = StoreReader(store, prefix, folder)
    bring(place, root, final)
    return place.manifest


def bring(
    place: CheckpointReader,
    root: Path,
    final: Path,
    entries: tuple[FileEntry, ...] | None = None,
    *,
    replace: bool = True,
) -> None:
    """Bring a checkpoint to `final` under `root`: one rename, durable; replace what is there.

    Without `replace`, what got that name meanwhile stays, and `FileExistsError` is raised.

    With `entries`, only those files of it, and no manifest: the directory is no checkpoint then. A
    call for the same goes on with what an earlier one left under `root`. Raises as `fetch`.
    """
    files = place.manifest.files if entries is None else entries
    name = place.manifest.digest
    if entries is not None:
        paths = "\n".join(entry.path for entry in entries)
        name = xxhash.xxh3_128_hexdigest(f"{name}\n{paths}".encode())
    with partial(root, name) as built:
        try:
            download_files(place, built, files)
        except (CheckpointCorruptError, CheckpointNotFoundError, DirectoryFullError):
            discard(built)
            raise
        if entries is None:
            _write_durable(built / MANIFEST, place.manifest.to_bytes())
        sync_directory(built)
        for path in {p for entry in files for p in PurePosixPath(entry.path).parents}:
            sync_directory(built / path)
        publish_partial(built, final, root, replace=replace)
    tidy(root)


def _write_durable(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        write_out(stream, data)
