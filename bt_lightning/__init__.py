"""Checkpoints of PyTorch Lightning runs that survive: durable, verified, published, resumed.

Names are loaded when they are first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt_lightning.config_file.load_config import load_config
    from bt_lightning.dcp_reader import DCPReader
    from bt_lightning.errors import (
        ArenaTooLargeError,
        CheckpointCorruptError,
        CheckpointError,
        CheckpointExistsError,
        CheckpointMismatchError,
        CheckpointNotFoundError,
        CheckpointProtectedError,
        ConfigNotFoundError,
        DirectoryFullError,
        DirectoryUnusableError,
        DrainTimeoutError,
        FormatVersionError,
        InvalidSettingError,
        JobRunningError,
        LeaseHeldError,
        PartsMissingError,
        RankLostError,
        RanksApartError,
        ReadOnlyError,
        ResumeMismatchError,
        SaveTimeoutError,
        StoreError,
        StorePermanentError,
        StoreTransientError,
        TornSnapshotError,
        UnsafeLoadError,
        UnsupportedStateError,
        UploadFailedError,
        WorkerDiedError,
    )
    from bt_lightning.lightning_plugin.callback import BTLightning
    from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
    from bt_lightning.lightning_plugin.model_checkpoint import BTModelCheckpoint
    from bt_lightning.plain_loop.checkpointer import Checkpointer
    from bt_lightning.retention import KeepBest, KeepEvery, KeepLatest
    from bt_lightning.session.resume_path import resume_path

__version__ = "0.2.0"

_ERRORS = "bt_lightning.errors"
_PLUGIN = "bt_lightning.lightning_plugin"
_RETENTION = "bt_lightning.retention"
_HOME = {
    "ArenaTooLargeError": _ERRORS,
    "BTCheckpointIO": f"{_PLUGIN}.checkpoint_io",
    "BTLightning": f"{_PLUGIN}.callback",
    "BTModelCheckpoint": f"{_PLUGIN}.model_checkpoint",
    "CheckpointCorruptError": _ERRORS,
    "CheckpointError": _ERRORS,
    "CheckpointExistsError": _ERRORS,
    "CheckpointMismatchError": _ERRORS,
    "CheckpointNotFoundError": _ERRORS,
    "CheckpointProtectedError": _ERRORS,
    "Checkpointer": "bt_lightning.plain_loop.checkpointer",
    "ConfigNotFoundError": _ERRORS,
    "DCPReader": "bt_lightning.dcp_reader",
    "DirectoryFullError": _ERRORS,
    "DirectoryUnusableError": _ERRORS,
    "DrainTimeoutError": _ERRORS,
    "FormatVersionError": _ERRORS,
    "InvalidSettingError": _ERRORS,
    "JobRunningError": _ERRORS,
    "KeepBest": _RETENTION,
    "KeepEvery": _RETENTION,
    "KeepLatest": _RETENTION,
    "LeaseHeldError": _ERRORS,
    "PartsMissingError": _ERRORS,
    "RankLostError": _ERRORS,
    "RanksApartError": _ERRORS,
    "ReadOnlyError": _ERRORS,
    "ResumeMismatchError": _ERRORS,
    "SaveTimeoutError": _ERRORS,
    "StoreError": _ERRORS,
    "StorePermanentError": _ERRORS,
    "StoreTransientError": _ERRORS,
    "TornSnapshotError": _ERRORS,
    "UnsafeLoadError": _ERRORS,
    "UnsupportedStateError": _ERRORS,
    "UploadFailedError": _ERRORS,
    "WorkerDiedError": _ERRORS,
    "load_config": "bt_lightning.config_file.load_config",
    "resume_path": "bt_lightning.session.resume_path",
}

__all__ = [
    "ArenaTooLargeError",
    "BTCheckpointIO",
    "BTLightning",
    "BTModelCheckpoint",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointProtectedError",
    "Checkpointer",
    "ConfigNotFoundError",
    "DCPReader",
    "DirectoryFullError",
    "DirectoryUnusableError",
    "DrainTimeoutError",
    "FormatVersionError",
    "InvalidSettingError",
    "JobRunningError",
    "KeepBest",
    "KeepEvery",
    "KeepLatest",
    "LeaseHeldError",
    "PartsMissingError",
    "RankLostError",
    "RanksApartError",
    "ReadOnlyError",
    "ResumeMismatchError",
    "SaveTimeoutError",
    "StoreError",
    "StorePermanentError",
    "StoreTransientError",
    "TornSnapshotError",
    "UnsafeLoadError",
    "UnsupportedStateError",
    "UploadFailedError",
    "WorkerDiedError",
    "load_config",
    "resume_path",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
