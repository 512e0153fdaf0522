"""Fetch a checkpoint from a store into a committed local directory: verified, whole, durable."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    DirectoryFullError,
)
from bt_lightning.localdir.atomic_directory import discard, tidy
from bt_lightning.localdir.fsync import sync_directory, write_out
from bt_lightning.localdir.partial_downloads import partial, publish_partial
from bt_lightning.path_layout import (
    MANIFEST,
)
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.resumable_download import download_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import Store
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


def fetch(store: Store, prefix: str, folder: str, root: Path, final: Path) -> Manifest:
    """Fetch one checkpoint of the store into the directory `final` under `root`, verified.

    It appears by one rename, durable. What an interrupted fetch left under `root` is verified and
    reused. Called in the worker.

    Raises:
        CheckpointNotFoundError: the folder holds no committed checkpoint.
        CheckpointCorruptError: the bytes differ from the manifest; nothing is kept.
        DirectoryFullError: the checkpoint does not fit on the disk; nothing is kept.
        StoreError: the store refused.
    """
    reader = StoreReader(store, prefix, folder)
    bring(reader, root, final)
    return reader.manifest


def bring(
    reader: CheckpointReader,
    root: Path,
    final: Path,
    entries: Sequence[FileEntry] | None = None,
    *,
    replace: bool = True,
) -> None:
    """Download a checkpoint into `final` under `root`: one rename, durable; replace what is there.

    Without `replace`, an existing `final` stays, and `FileExistsError` is raised.

    With `entries`, only those files, and no manifest: then the directory is no checkpoint. What an
    interrupted call left under `root` is reused. Raises as `fetch`.
    """
    files = reader.manifest.files if entries is None else entries
    name = reader.manifest.digest
    if entries is not None:
        paths = "\n".join(entry.path for entry in entries)
        name = xxhash.xxh3_128_hexdigest(f"{name}\n{paths}".encode())
    with partial(root, name) as built:
        try:
            download_files(reader, built, files)
        except (CheckpointCorruptError, CheckpointNotFoundError, DirectoryFullError):
            discard(built)
            raise
        if entries is None:
            _write_durable(built / MANIFEST, reader.manifest.to_bytes())
        sync_directory(built)
        for path in {p for entry in files for p in PurePosixPath(entry.path).parents}:
            sync_directory(built / path)
        publish_partial(built, final, root, replace=replace)
    tidy(root)


def _write_durable(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        write_out(stream, data)
