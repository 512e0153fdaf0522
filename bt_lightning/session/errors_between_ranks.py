"""Errors that cross from one rank to the others, and those that a user may turn into warnings."""

from __future__ import annotations

import pickle

from bt_lightning.errors import (
    CheckpointError,
    DirectoryFullError,
    DirectoryUnusableError,
    SaveTimeoutError,
    TornSnapshotError,
)


def is_save_failure(error: CheckpointError) -> bool:
    """Whether a save failed that the user has no say in: neither an upload nor want of room."""
    full = isinstance(error, DirectoryFullError)
    kinds = DirectoryUnusableError | SaveTimeoutError | TornSnapshotError
    return isinstance(error, kinds) and not full


def portable(error: Exception) -> Exception:
    """`error`, or one of ours that says the same if it would not survive the way to other ranks."""
    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else _said(error)
    except Exception:  # noqa: BLE001 - user classes fail in any way
        return _said(error)


def _said(error: Exception) -> CheckpointError:
    return CheckpointError(f"{type(error).__name__}: {error}")
