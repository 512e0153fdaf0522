"""Find and verify the committed checkpoints under a directory. The disk is the truth."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bt_lightning import file_limits
from bt_lightning.block_digests import size_of_blocks
from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.directory_walk import walk
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.sidecars import (
    CONTENT,
    changed_file,
    content_directory,
    is_sidecar,
    read_content,
    sidecars,
)
from bt_lightning.localdir.small_files import read_small_file
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.localdir.sidecars import ForeignContent


NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
"""The errno values when there is no regular file at a path, but nothing or something else."""
_NAMED: Final = 20
_SHOWN_BLOCKS: Final = 20


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A directory with a manifest under its final name, or a sidecar."""

    path: Path
    """Where the manifest lies, and by which it is read, verified and deleted."""
    manifest: Manifest

    @property
    def content(self) -> Path:
        """The directory that its files lie in."""
        return content_directory(self.path)


@dataclass(frozen=True, slots=True)
class Refused:
    """A path that must not be used as a checkpoint, or could not be read, and why."""

    place: str
    reason: str


class Listed(NamedTuple):
    """What one walk under a directory found."""

    found: list[LocalCheckpoint]
    """Newest first."""
    refused: list[Refused]
    """Directories with a manifest that cannot be used."""
    unread: list[Refused]
    """Folders that could not be read: their content is unknown."""

    def of_format(self, form: str | None) -> Listed:
        """With the checkpoints of one layout only; None is our own."""
        return self._replace(found=[one for one in self.found if one.manifest.format == form])


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint directory `path`.

    Raises:
        CheckpointNotFoundError: there is no manifest, so nothing is committed there; or it is a
            sidecar, and a file changed since.
        CheckpointCorruptError: the manifest is damaged, or of a newer format
            (`FormatVersionError`).
    """
    manifest = stated_manifest(path)
    if is_sidecar(path):
        root = path.parents[2]
        changed = changed_file(root, _content_of(path))
        if changed is not None:
            msg = f"no committed checkpoint {manifest.checkpoint_id} in {root}: {changed} changed"
            raise CheckpointNotFoundError(msg)
    return manifest


def _content_of(sidecar: Path) -> ForeignContent:
    try:
        return read_content(sidecar)
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = f"no committed checkpoint at {sidecar}: it has no {CONTENT}"
        raise CheckpointNotFoundError(msg) from error


def stated_manifest(path: Path) -> Manifest:
    """As `read_manifest`, though the files of a sidecar may have changed since."""
    try:
        data = read_small_file(path / MANIFEST, file_limits.MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = f"no committed checkpoint at {path}: it has no {MANIFEST}"
        raise CheckpointNotFoundError(msg) from error
    except CheckpointCorruptError as error:
        msg = f"the manifest {path} is damaged: {error}"
        raise CheckpointCorruptError(msg) from error
    return Manifest.from_bytes(data, str(path))


def manifest_directories(
    root: Path, left_out: Callable[[str, OSError], None] | None = None
) -> list[Path]:
    """Directories with a manifest under `root`, itself included; dot folders are skipped.

    Symbolic links are not followed: `save_last="link"` makes one, and its target is listed under
    its own name. `left_out` is called with a folder that cannot be read.

    Raises:
        OSError: `root` cannot be read; without `left_out`, also for any folder below it.
    """
    found: list[Path] = []

    def leave(folder: str) -> bool:
        if not _has_manifest(folder):
            return False
        found.append(Path(folder))
        return True  # a checkpoint holds no checkpoints

    walk(str(root), leave, left_out or _raise)
    return found


def list_committed(root: Path, *, foreign: bool = True) -> Listed:
    """The checkpoints under `root`, newest first, and what cannot be used or read.

    Without `foreign`, only those that this package wrote, in whatever layout.

    Raises:
        DirectoryUnusableError: `root` itself cannot be read.
    """
    found: list[LocalCheckpoint] = []
    refused: list[Refused] = []
    unread = Unread()
    with directory_errors(root):
        folders = manifest_directories(root, unread.add)
        folders += sidecars(root) if foreign else []
    for path in folders:
        try:
            found.append(LocalCheckpoint(path, read_manifest(path)))
        except CheckpointNotFoundError:
            continue  # deleted since the walk saw it
        except (CheckpointCorruptError, OSError) as error:
            refused.append(Refused(str(path), str(error)))
    found.sort(key=lambda checkpoint: checkpoint.manifest.order, reverse=True)
    return Listed(found, refused, unread.result(root))


class Unread:
    """Collects the folders that a walk could not read: the first by name, then only a count."""

    def __init__(self) -> None:
        self._first: list[Refused] = []
        self._more = 0

    def add(self, folder: str, error: OSError) -> None:
        """Add a folder that could not be read."""
        if len(self._first) == _NAMED:
            self._more += 1
        else:
            reason = str(error) if error.strerror is None else f"{folder}: {error.strerror}"
            self._first.append(Refused(folder, f"{reason}: it is left out"))

    def result(self, root: Path) -> list[Refused]:
        """The named folders, and one entry that counts all others."""
        more = f"{self._more:,} more folders below {root} are left out"
        return self._first + [Refused(str(root), more)] * bool(self._more)


def _has_manifest(folder: str) -> bool:
    path = os.path.join(folder, MANIFEST)  # noqa: PTH118 - a hundred thousand of them
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stat.S_ISDIR(mode)


def _raise(_: str, error: OSError) -> None:
    raise error


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Raise `CheckpointCorruptError` unless every file has its size; reads no content."""
    content = content_directory(path)
    for entry in manifest.files:
        try:
            status = (content / entry.path).stat()
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            msg = f"the checkpoint {path} is damaged: its file {entry.path} is missing"
            raise CheckpointCorruptError(msg) from error
        if not stat.S_ISREG(status.st_mode):
            msg = f"the checkpoint {path} is damaged: its file {entry.path} is no regular file"
            raise CheckpointCorruptError(msg)
        if status.st_size != entry.size:
            msg = (
                f"the checkpoint {path} is damaged: {entry.path} has {status.st_size} bytes, its"
                f" manifest says {entry.size}"
            )
            raise CheckpointCorruptError(msg)


def verify_sizes(path: Path) -> Manifest:
    """As `verify`, of the sizes of the files only: reads no content."""
    manifest = read_manifest(path)
    check_sizes(path, manifest)
    return manifest


def verify(path: Path) -> Manifest:
    """Read every byte of the checkpoint at `path` and compare it with the manifest.

    Raises:
        CheckpointNotFoundError: nothing is committed there, or it was deleted meanwhile.
        CheckpointCorruptError: a file is missing, or has another size or other bytes.
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
    """Whether the checkpoint at `path` still has this manifest."""
    try:
        return read_manifest(path).digest == manifest.digest
    except (CheckpointCorruptError, CheckpointNotFoundError):
        return False


def check_digest(path: Path, entry: FileEntry) -> None:
    """Read one file of the checkpoint at `path`; raise `CheckpointCorruptError` if it differs."""
    found = digest_file(content_directory(path) / entry.path, entry.path, entry.block_bytes)
    if found != entry:
        raise CheckpointCorruptError(describe_damage(str(path), entry, found))


def describe_damage(place: str, stated: FileEntry, found: FileEntry) -> str:
    """The message for a file that differs from the manifest; it names the blocks."""
    pairs = zip(stated.blocks, found.blocks, strict=False)
    bad = [index for index, (one, other) in enumerate(pairs) if one != other]
    return damaged_blocks(place, stated, bad)


def damaged_blocks(place: str, entry: FileEntry, blocks: Sequence[int]) -> str:
    """The message for a file of which these blocks differ from the manifest."""
    more = f" and {len(blocks) - _SHOWN_BLOCKS:,} more" if len(blocks) > _SHOWN_BLOCKS else ""
    return (
        f"the checkpoint {place} is damaged: the bytes of {entry.path} are not those that were"
        f" saved (XXH3-128 differs, {size_of_blocks(entry.block_bytes)} blocks"
        f" {list(blocks[:_SHOWN_BLOCKS])}{more})"
    )
