"""Protecting a checkpoint on a disk from deletion, by whomever."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from bt_lightning.file_limits import RECORD
from bt_lightning.layout import MANIFEST, PROTECTION
from bt_lightning.localdir.fsync import sync_directory
from bt_lightning.localdir.local_checkpoints import read_manifest
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.protection_record import Protection

if TYPE_CHECKING:
    from pathlib import Path


def protect_local(path: Path, protection: Protection) -> None:
    """Protect the checkpoint directory `path`; what an earlier protection said is replaced.

    Raises:
        CheckpointNotFoundError: there is none.
        CheckpointCorruptError: its manifest is damaged.
        OSError: the disk refused.
    """
    read_manifest(path)
    part = f".{PROTECTION}.{uuid.uuid4().hex}.part"  # two may protect it at a time
    replace_small(path / PROTECTION, protection.to_bytes(), part=part)
    if not (path / MANIFEST).exists():
        read_manifest(path)


def unprotect_local(path: Path) -> None:
    """Let the checkpoint directory `path` be deleted again; idempotent."""
    (path / PROTECTION).unlink(missing_ok=True)
    sync_directory(path)


def protection_of(path: Path) -> Protection | None:
    """What protects the checkpoint directory `path`; None if nothing does."""
    try:
        return Protection.from_bytes(read_small_file(path / PROTECTION, RECORD))
    except (FileNotFoundError, NotADirectoryError):
        return (
            Protection() if is_protected_local(path) else None
        )  # a link that leads nowhere protects
    except (OSError, ValueError):
        return Protection()


def is_protected_local(path: Path) -> bool:
    """Whether somebody protected the checkpoint directory `path`."""
    return os.path.lexists(path / PROTECTION)
