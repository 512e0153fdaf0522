"""Where the manifests of checkpoints that other programs wrote lie: beside them, in a sidecar.

A sidecar is a folder below `.bt_lightning/foreign` with a manifest and `content.json`: where the
files lie, and the stamp that each had when its digest was made. It counts as a checkpoint only
while every file still has its stamp. Nothing is written into the other program's folder.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash

from bt_lightning import file_limits
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.directory_walk import entries
from bt_lightning.localdir.find_job_files import Stamp
from bt_lightning.localdir.small_files import read_json
from bt_lightning.path_layout import DOT_DIR, safe_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER: Final = "foreign"
CONTENT: Final = "content.json"
_GONE: Final = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignContent:
    """The files of a checkpoint that another program wrote."""

    folder: str
    """Posix path below the root; empty for the root itself."""
    file: str = ""
    """Its name, if it is a single file of that folder."""
    stamps: Mapping[str, Stamp]
    """Posix path below the folder -> stamp when its digest was made."""
    rotated: bool = True
    """Whether the program deletes its old checkpoints; if not, it is a person who does."""

    @property
    def place(self) -> tuple[str, str]:
        """Folder and file: no two checkpoints have the same."""
        return self.folder, self.file

    def to_json(self) -> dict[str, Any]:
        """For `content.json`."""
        return {
            "folder": self.folder,
            "file": self.file,
            "rotated": self.rotated,
            "stamps": {path: list(stamp) for path, stamp in self.stamps.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> ForeignContent:
        """As `to_json` made it.

        Raises:
            CheckpointCorruptError: `value` is something else, or a path leaves the root.
        """
        try:
            found = cls(
                folder=value["folder"],
                file=value["file"],
                rotated=bool(value["rotated"]),
                stamps={path: Stamp(*numbers) for path, numbers in value["stamps"].items()},
            )
            paths = [*found.stamps, *([found.folder] if found.folder else [])]
            whole = bool(found.stamps) and all(safe_parts(path) for path in paths)
        except (AttributeError, KeyError, TypeError) as error:
            msg = f"{CONTENT} is damaged: {type(error).__name__} {error}"
            raise CheckpointCorruptError(msg) from error
        if not whole:
            msg = f"{CONTENT} is damaged: it names no files below the root"
            raise CheckpointCorruptError(msg)
        return found


def sidecar_of(root: Path, checkpoint_id: str) -> Path:
    """The sidecar that a checkpoint of this id has."""
    return root / DOT_DIR / FOLDER / xxhash.xxh3_128_hexdigest(checkpoint_id.encode())


def is_sidecar(path: Path) -> bool:
    """Whether `path` is a sidecar, by its place."""
    return path.parent.name == FOLDER and path.parent.parent.name == DOT_DIR


def sidecars(root: Path) -> list[Path]:
    """Every sidecar of a checkpoint directory.

    Raises:
        OSError: their folder cannot be read.
    """
    try:
        listed = entries(str(root / DOT_DIR / FOLDER))
        return sorted(Path(one.path) for one in listed if one.is_dir(follow_symlinks=False))
    except _GONE:
        return []


def sidecar_places(root: Path) -> set[tuple[str, str]]:
    """Folder and file of all that has a sidecar, whether its files are still the same or not."""
    found = set()
    for path in sidecars(root):
        with contextlib.suppress(CheckpointCorruptError, OSError):  # listed as refused
            found.add(read_content(path).place)
    return found


def read_content(sidecar: Path) -> ForeignContent:
    """The content of a sidecar.

    Raises:
        CheckpointCorruptError: it is damaged.
        OSError: it is gone, or cannot be read.
    """
    return ForeignContent.from_json(read_json(sidecar / CONTENT, file_limits.MANIFEST))


def content_directory(path: Path) -> Path:
    """The directory that the files of the checkpoint at `path` lie in: `path`, or another's.

    Raises:
        CheckpointCorruptError, OSError: as `read_content`, of a sidecar.
    """
    if not is_sidecar(path):
        return path
    return path.parents[2] / read_content(path).folder


def changed_file(root: Path, content: ForeignContent) -> str | None:
    """The first file that has not its stamp any more; None if all have."""
    folder = os.path.join(root, content.folder)  # noqa: PTH118 - many files
    for path, stamp in content.stamps.items():
        try:
            status = os.lstat(f"{folder}/{path}")
        except OSError:
            return path
        if Stamp.of(status) != stamp or not stat.S_ISREG(status.st_mode):
            return path
    return None


def is_gone(root: Path, content: ForeignContent) -> bool:
    """Whether none of the files is there, under a root that is."""
    folder = root / content.folder
    return root.is_dir() and not any(os.path.lexists(folder / path) for path in content.stamps)
