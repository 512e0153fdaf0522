"""Checkpoints that loggers are to have as soon as they are committed; on the rank that writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import UploadFailedError
from bt_lightning.lightning_plugin.compat_logger_artifacts import LoggedCheckpoint, give
from bt_lightning.session.bt_and_evicted_paths import StorePaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class LoggerArtifacts:
    """Those of one fit, on the training thread, which waits for no commit.

    A logger is told of a save while the worker commits it. What it would upload then is kept, and
    handed over when the commit is known, before the checkpoint may be removed.
    """

    def __init__(self, root: Path, pending: Callable[[str], int]) -> None:
        """`pending` says how many saves of an id under `root` are under way."""
        self._id_of = StorePaths(None, root=root).checkpoint_id_of
        self._pending = pending
        self._waiting: dict[tuple[int, str], tuple[str, Any, LoggedCheckpoint]] = {}
        self._failures: list[Exception] = []

    def hand(self, logger: Any, shot: LoggedCheckpoint) -> None:
        """Give a checkpoint to a logger: now, or when it is committed."""
        checkpoint_id = self._id_of(shot.path)
        if checkpoint_id is None or not self._pending(checkpoint_id):
            give(logger, shot)
        else:
            self._waiting[id(logger), shot.path] = (checkpoint_id, logger, shot)

    def hand_over(self, checkpoint_id: str | None = None) -> None:
        """Give what waits and is under way no more: of this id, or all."""
        for key, (name, logger, shot) in list(self._waiting.items()):
            if checkpoint_id in {None, name} and not self._pending(name):
                del self._waiting[key]
                self._give(logger, shot)

    @property
    def has_failures(self) -> bool:
        """Whether `failures` has any."""
        return bool(self._failures)

    def failures(self) -> list[Exception]:
        """What loggers raised since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def _give(self, logger: Any, shot: LoggedCheckpoint) -> None:
        try:
            give(logger, shot)
        except Exception as error:  # noqa: BLE001 - of whatever the logger talks to
            text = f"{type(logger).__name__} did not take {shot.path}: {error}"
            failure = UploadFailedError(text)
            failure.__cause__ = error
            self._failures.append(failure)
