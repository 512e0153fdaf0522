"""Makes errors picklable for other ranks, and recognises those that `on_error` may downgrade."""

from __future__ import annotations

import pickle

from bt_lightning.errors import (
    CheckpointError,
    DirectoryFullError,
    DirectoryUnusableError,
    PartsMissingError,
    SaveTimeoutError,
    TornSnapshotError,
)


def is_save_failure(error: CheckpointError) -> bool:
    """Whether the error is a failed save for another reason than an upload or a full disk."""
    full = isinstance(error, DirectoryFullError)
    kinds = DirectoryUnusableError | PartsMissingError | SaveTimeoutError | TornSnapshotError
    return isinstance(error, kinds) and not full


def portable(error: Exception) -> Exception:
    """`error`, or a `CheckpointError` with its text if it cannot be pickled for other ranks."""
    try:
        return (
            error
            if isinstance(pickle.loads(pickle.dumps(error)), type(error))
            else _as_checkpoint_error(error)
        )
    except Exception:  # noqa: BLE001 - user classes fail in any way
        return _as_checkpoint_error(error)


def _as_checkpoint_error(error: Exception) -> CheckpointError:
    return CheckpointError(f"{type(error).__name__}: {error}")
