"""Protecting a checkpoint on a disk from deletion, by whomever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.layout import MANIFEST, PROTECTION
from bt_lightning.localdir.committed import read_manifest
from bt_lightning.localdir.files import sync_directory, write_out
from bt_lightning.protection import Protection

if TYPE_CHECKING:
    from pathlib import Path


def protect(path: Path, protection: Protection) -> None:
    """Protect the checkpoint directory `path`; what an earlier protection said is replaced.

    Raises:
        CheckpointNotFoundError: there is none.
        CheckpointCorruptError: its manifest is damaged.
        OSError: the disk refused.
    """
    read_manifest(path)
    part = path / f".{PROTECTION}.part"
    with part.open("wb") as stream:
        write_out(stream, protection.to_bytes())
    part.replace(path / PROTECTION)
    sync_directory(path)
    if not (path / MANIFEST).exists():
        read_manifest(path)


def unprotect(path: Path) -> None:
    """Let the checkpoint directory `path` be deleted again; idempotent."""
    (path / PROTECTION).unlink(missing_ok=True)
    sync_directory(path)


def protection_of(path: Path) -> Protection | None:
    """What protects the checkpoint directory `path`; None if nothing does."""
    try:
        return Protection.from_bytes((path / PROTECTION).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_protected(path: Path) -> bool:
    """Whether somebody protected the checkpoint directory `path`."""
    return (path / PROTECTION).exists()
