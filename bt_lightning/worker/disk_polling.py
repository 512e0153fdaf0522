"""When a publisher looks at the disk of its own accord: for files, and as a standby worker."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bt_lightning.worker.publish_job_files import JobFilePublisher

_STANDBY_S: Final = 2.0
"""Nobody tells a standby worker of a commit; it looks so often, unless files are looked for."""


class _Ending(enum.IntEnum):
    """Whether a training process is about to end."""

    NO = 0
    SOON = 1
    GONE = 2


class DiskPolling:
    """`look` and `plan` are the publisher's thread's; all else is guarded by its lock."""

    def __init__(self, files: JobFilePublisher | None, *, standby: bool) -> None:
        self._files = files
        self._standby = standby
        self._ending = _Ending.NO
        self._told = True
        """Whether the files were told of the ending that goes on."""
        self.next_at: float | None = 0.0
        """When to look again, by `time.monotonic`; None for never."""
        self.unsettled = False
        """Whether an ending waits for a file."""

    @property
    def gone(self) -> bool:
        """Whether the training process is known to be gone."""
        return self._ending is _Ending.GONE

    @property
    def waiting(self) -> tuple[str, ...]:
        """Paths of files that the store has not."""
        return self._files.waiting if self._files is not None else ()

    @property
    def reason(self) -> str | None:
        """Why one of them is not there."""
        return self._files.reason if self._files is not None else None

    def end(self, *, gone: bool) -> None:
        """A training process ends, or is gone."""
        self._told = self._told and self._ending is not _Ending.NO
        self._ending = _Ending.GONE if gone else max(self._ending, _Ending.SOON)

    def go_on(self) -> None:
        """It did not end, or another may come."""
        self._ending = _Ending.NO

    def look(self) -> bool:
        """Look for files, if it is time for that; whether one may be sent."""
        files = self._files
        if files is None:
            return False
        anew, self._told = not self._told, True
        ending = self._ending
        if ending is _Ending.NO or anew:
            files.go_on()
        if ending is not _Ending.NO:
            files.end(gone=ending is _Ending.GONE)
        if time.monotonic() >= files.next_look:
            files.look()
        return files.ready

    def plan(self) -> None:
        """Say when to look again."""
        if self._files is not None:
            self.next_at, self.unsettled = self._files.next_look, self._files.unsettled
        else:
            self.next_at = time.monotonic() + _STANDBY_S if self._standby else None

    def complaints(self) -> list[str]:
        """What was found to be no object of a store since the last call."""
        if self._files is None:
            return []
        found, self._files.complaints = self._files.complaints, []
        return found
