"""Committed checkpoints under a directory: find, verify, delete. The disk is the truth."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.layout import MANIFEST
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.files import raise_unless_gone
from bt_lightning.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bt_lightning.manifest import FileEntry


NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
"""What the kernel says where a regular file is looked for and something else, or nothing, is."""


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A directory with a manifest under its final name."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that looks like a checkpoint and must not be used."""

    place: str
    reason: str


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint directory `path`.

    Raises:
        CheckpointNotFoundError: there is none, so nothing is committed there.
        CheckpointCorruptError: it is damaged, or of a newer format (`FormatVersionError`).
    """
    try:
        data = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = f"no committed checkpoint at {path}: it has no {MANIFEST}"
        raise CheckpointNotFoundError(msg) from error
    return Manifest.from_bytes(data, str(path))


def manifest_directories(root: Path) -> Iterator[Path]:
    """Directories under `root`, itself included, that hold a manifest; dot folders are skipped.

    Symbolic links are not followed: `save_last="link"` makes one, and what it names is listed
    under its own name.
    """
    for place, folders, files in os.walk(root, onerror=raise_unless_gone):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if MANIFEST in files:
            folders.clear()  # a checkpoint holds no checkpoints
            yield Path(place)


def list_committed(root: Path) -> tuple[list[LocalCheckpoint], list[Refused]]:
    """What is committed under `root`, newest first, and what has a manifest that cannot be read."""
    found: list[LocalCheckpoint] = []
    refused: list[Refused] = []
    for path in manifest_directories(root):
        try:
            found.append(LocalCheckpoint(path, read_manifest(path)))
        except CheckpointNotFoundError:
            continue  # deleted since the walk saw it
        except (CheckpointCorruptError, OSError) as error:
            refused.append(Refused(str(path), str(error)))
    found.sort(key=lambda checkpoint: checkpoint.manifest.order, reverse=True)
    return found, refused


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Raise `CheckpointCorruptError` unless every file is there with its size; reads no content."""
    for entry in manifest.files:
        try:
            size = (path / entry.path).stat().st_size
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            msg = f"the checkpoint {path} is damaged: its file {entry.path} is missing"
            raise CheckpointCorruptError(msg) from error
        if size != entry.size:
            msg = (
                f"the checkpoint {path} is damaged: {entry.path} has {size} bytes, its manifest"
                f" says {entry.size}"
            )
            raise CheckpointCorruptError(msg)


def verify(path: Path) -> Manifest:
    """Read every byte of the checkpoint at `path` and compare it with the manifest.

    Raises:
        CheckpointNotFoundError: nothing is committed there, or no longer.
        CheckpointCorruptError: a file is missing, has another size, or other bytes.
    """
    manifest = read_manifest(path)
    try:
        check_sizes(path, manifest)
        for entry in manifest.files:
            check_digest(path, entry)
    except (CheckpointCorruptError, FileNotFoundError) as error:
        if is_unchanged(path, manifest):
            raise
        msg = f"the checkpoint {path} was replaced or deleted while it was read"
        raise CheckpointNotFoundError(msg) from error
    return manifest


def is_unchanged(path: Path, manifest: Manifest) -> bool:
    """Whether the checkpoint at `path` is still the one with this manifest."""
    try:
        return read_manifest(path).digest == manifest.digest
    except (CheckpointCorruptError, CheckpointNotFoundError):
        return False


def check_digest(path: Path, entry: FileEntry) -> None:
    """Read one file of the checkpoint at `path`; raise `CheckpointCorruptError` if it changed."""
    found = digest_file(path / entry.path, entry.path)
    if found != entry:
        raise CheckpointCorruptError(describe_damage(str(path), entry, found))


def describe_damage(place: str, stated: FileEntry, found: FileEntry) -> str:
    """The message for a file whose bytes are not those of the manifest: which blocks differ."""
    pairs = zip(stated.blocks, found.blocks, strict=False)
    bad = [index for index, (one, other) in enumerate(pairs) if one != other]
    return damaged_blocks(place, stated.path, bad)


def damaged_blocks(place: str, path: str, blocks: Sequence[int]) -> str:
    """The message for a file of which some blocks are not those of the manifest."""
    return (
        f"the checkpoint {place} is damaged: the bytes of {path} are not those that were"
        f" saved (XXH3-128 differs, 4 MiB blocks {list(blocks)})"
    )
