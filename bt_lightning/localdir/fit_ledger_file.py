"""The ledger of fits in a checkpoint directory: a file of lines that is appended to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError, DirectoryUnusableError
from bt_lightning.fit_ledger import FitRecord, in_parts, read_ledger
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.localdir.small_files import read_lines
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "fits.jsonl"


def read_fits(root: Path) -> tuple[FitRecord, ...]:
    """The fits of the directory; none if it has no ledger, or one that cannot be read."""
    try:
        return read_ledger(list(read_lines(root / DOT_DIR / FILE)))
    except (CheckpointCorruptError, DirectoryUnusableError, FileNotFoundError):
        return ()


def ledger_parts(root: Path) -> list[bytes]:
    """The ledger, for the store; empty if there is none that can be read.

    Raises:
        OSError: the disk refused.
    """
    try:
        return in_parts(read_lines(root / DOT_DIR / FILE))
    except (CheckpointCorruptError, DirectoryUnusableError, FileNotFoundError):
        return []


def ledger_version(root: Path) -> tuple[int, ...] | None:
    """Changes whenever the ledger does; None if there is none."""
    try:
        found = (root / DOT_DIR / FILE).lstat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def note_fits(root: Path, *lines: bytes) -> None:
    """Append lines to the ledger, durably; by the training process that has the directory.

    Raises:
        OSError: the disk refused.
    """
    folder = root / DOT_DIR
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"  # a kill cut a line short
        os.write(descriptor, (b"\n" if torn else b"") + b"".join(lines))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
