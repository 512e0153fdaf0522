"""Every error that this package raises on purpose.

::

    Exception
    └── CheckpointError
        ├── CheckpointNotFoundError (FileNotFoundError)   nothing committed under that name
        ├── CheckpointExistsError (FileExistsError)       the name holds other, committed bytes
        ├── CheckpointCorruptError (ValueError)           bytes differ from what the manifest says
        │   └── FormatVersionError                        written by a newer version of this package
        ├── CheckpointMismatchError (RuntimeError)        weights of another model
        ├── ResumeMismatchError (RuntimeError)    training begins elsewhere than its checkpoint says
        ├── UnsafeLoadError (pickle.UnpicklingError)      needs code that is not allowed to run
        ├── UnsupportedStateError (TypeError)             a value that no file can hold
        ├── InvalidSettingError (ValueError)              an invalid argument or variable
        │   └── ConfigNotFoundError (FileNotFoundError)   no config file of that name
        ├── ReadOnlyError (PermissionError)               bt:// URLs are for reading
        ├── CheckpointProtectedError (PermissionError)    somebody protected the checkpoint
        ├── DirectoryUnusableError (OSError)              the checkpoint directory cannot be written
        │   └── DirectoryFullError                        there is no room for a checkpoint
        ├── TornSnapshotError (RuntimeError)              the state changed while it was copied
        ├── ArenaTooLargeError (MemoryError)              no host memory for a snapshot
        ├── SaveTimeoutError (TimeoutError)               the disk does not take a save
        ├── RankLostError (RuntimeError)                  another rank is gone, or does not answer
        ├── PartsMissingError (RuntimeError)              parts of a checkpoint are missing
        ├── StoreError (OSError)                          the store refused
        │   ├── StoreTransientError                       another try may succeed
        │   │   └── LeaseHeldError                        another process publishes there
        │   └── StorePermanentError                       another try will not
        ├── UploadFailedError (RuntimeError)              the worker gave up on a checkpoint
        ├── WorkerDiedError (ChildProcessError)           the worker process is gone
        ├── DrainTimeoutError (TimeoutError)              not everything reached the store in time
        ├── RanksApartError (TimeoutError)                not all ranks reached the common point
        └── JobRunningError (RuntimeError)                another run has the job or its directory

Each class takes one positional message, so that it survives pickling between processes, and
carries the exit code that the command line ends with.
"""

from __future__ import annotations

import errno
import pickle
from typing import ClassVar


class CheckpointError(Exception):
    """Base of everything raised on purpose by bt_lightning."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """Raised when no committed checkpoint has the wanted name."""

    exit_code = 10


class CheckpointExistsError(CheckpointError, FileExistsError):
    """Raised when a name that may be written once already holds other bytes."""

    exit_code = 11


class CheckpointCorruptError(CheckpointError, ValueError):
    """Raised when the bytes of a checkpoint differ from its manifest."""

    exit_code = 12


class FormatVersionError(CheckpointCorruptError):
    """Raised when a checkpoint was written in a format newer than this package reads."""

    exit_code = 13


class CheckpointMismatchError(CheckpointError, RuntimeError):
    """Raised when the weights of a checkpoint do not fit the model being trained."""

    exit_code = 14


class ResumeMismatchError(CheckpointError, RuntimeError):
    """Raised when a resumed training begins at another step than its checkpoint says."""

    exit_code = 35


class UnsafeLoadError(CheckpointError, pickle.UnpicklingError):
    """Raised when a checkpoint holds objects that only `weights_only=False` may load."""

    exit_code = 15


class UnsupportedStateError(CheckpointError, TypeError):
    """Raised when a state holds a value that can be neither encoded nor pickled."""

    exit_code = 16


class InvalidSettingError(CheckpointError, ValueError):
    """Raised when an argument or an environment variable has a value that cannot be used."""

    exit_code = 2


class ConfigNotFoundError(InvalidSettingError, FileNotFoundError):
    """Raised when the file that defines a training project does not exist."""

    exit_code = 32


class ReadOnlyError(CheckpointError, PermissionError):
    """Raised when a `bt://` URL is used to write, move or delete."""

    exit_code = 28

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.EROFS


class CheckpointProtectedError(CheckpointError, PermissionError):
    """Raised when a protected checkpoint is to be deleted."""

    exit_code = 30


class DirectoryUnusableError(CheckpointError, OSError):
    """Raised when the checkpoint directory cannot be created or written."""

    exit_code = 17

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle `errno` too, which `OSError` omits: the worker's errors come through a pipe."""
        return type(self), self.args, {**vars(self), "errno": self.errno}


class DirectoryFullError(DirectoryUnusableError):
    """Raised when there is no room for a checkpoint on its volume, or within its budget."""

    exit_code = 27

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


class TornSnapshotError(CheckpointError, RuntimeError):
    """Raised, once, when a state changed while it was copied: the checkpoint was given up."""

    exit_code = 18


class ArenaTooLargeError(CheckpointError, MemoryError):
    """Raised when a snapshot needs more host memory than there is, or than is allowed."""

    exit_code = 19


class SaveTimeoutError(CheckpointError, TimeoutError):
    """Raised when the local disk does not take a save in time."""

    exit_code = 26


class RankLostError(CheckpointError, RuntimeError):
    """Raised when another rank is gone, or does not reach the point where this one waits."""

    exit_code = 34


class PartsMissingError(CheckpointError, RuntimeError):
    """Raised when a checkpoint is not committed, as another rank's part is missing or differs."""

    exit_code = 36


class StoreError(CheckpointError, OSError):
    """Raised when the store fails a request."""

    exit_code = 20


class StoreTransientError(StoreError):
    """Raised when the store failed in a way that another try may cure."""

    exit_code = 21


class LeaseHeldError(StoreTransientError):
    """Raised when another process writes to the same part of the store."""

    exit_code = 29


class StorePermanentError(StoreError):
    """Raised when the store refused in a way that another try will not cure."""

    exit_code = 22


class UploadFailedError(CheckpointError, RuntimeError):
    """Raised in the training process, once, when the worker could not publish a checkpoint."""

    exit_code = 23


class WorkerDiedError(CheckpointError, ChildProcessError):
    """Raised when the worker process died too often."""

    exit_code = 24


class DrainTimeoutError(CheckpointError, TimeoutError):
    """Raised when checkpoints are still waiting for the store at the deadline."""

    exit_code = 25


class JobRunningError(CheckpointError, RuntimeError):
    """Raised when another process already runs the job."""

    exit_code = 31


class RanksApartError(CheckpointError, TimeoutError):
    """Raised when another rank does not reach the point where all meet; on every waiting rank."""

    exit_code = 33
