"""Uploads checkpoints to loggers once they are committed; on the rank that writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import UploadFailedError
from bt_lightning.lightning_plugin.compat_logger_artifacts import LoggedCheckpoint, upload_to_logger
from bt_lightning.session.bt_and_evicted_paths import StorePaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class LoggerArtifacts:
    """The uploads of one fit; used on the training thread, without waiting for a commit.

    Lightning calls a logger while the worker still commits the save. The upload is kept until the
    commit is known, and made before the checkpoint may be removed.
    """

    def __init__(self, root: Path, pending: Callable[[str], int]) -> None:
        """`pending` returns the number of saves in progress of a checkpoint id under `root`."""
        self._id_of = StorePaths(None, root=root).checkpoint_id_of
        self._pending = pending
        self._waiting: dict[tuple[int, str], tuple[str, Any, LoggedCheckpoint]] = {}
        self._failures: list[Exception] = []

    def upload_when_committed(self, logger: Any, checkpoint: LoggedCheckpoint) -> None:
        """Upload a checkpoint to a logger: at once if it is committed, otherwise later."""
        checkpoint_id = self._id_of(checkpoint.path)
        if checkpoint_id is None or not self._pending(checkpoint_id):
            upload_to_logger(logger, checkpoint)
        else:
            self._waiting[id(logger), checkpoint.path] = (checkpoint_id, logger, checkpoint)

    def hand_over(self, checkpoint_id: str | None = None) -> None:
        """Upload the waiting checkpoints that are committed by now: of this id, or all."""
        for key, (name, logger, checkpoint) in list(self._waiting.items()):
            if checkpoint_id in {None, name} and not self._pending(name):
                del self._waiting[key]
                self._upload(logger, checkpoint)

    @property
    def has_failures(self) -> bool:
        """Whether `failures` has something to return."""
        return bool(self._failures)

    def failures(self) -> list[Exception]:
        """The errors of loggers since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def _upload(self, logger: Any, checkpoint: LoggedCheckpoint) -> None:
        try:
            upload_to_logger(logger, checkpoint)
        except Exception as error:  # noqa: BLE001 - loggers raise anything
            text = f"{type(logger).__name__} did not take {checkpoint.path}: {error}"
            failure = UploadFailedError(text)
            failure.__cause__ = error
            self._failures.append(failure)
