"""When the publisher thread scans the disk unasked: for job files, and in a standby worker."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bt_lightning.worker.publish_job_files import JobFilePublisher

_STANDBY_S: Final = 2.0
"""Seconds between two scans of a standby worker, which no message tells of a commit."""


class _Ending(enum.IntEnum):
    """Whether a training process is about to end."""

    NO = 0
    SOON = 1
    GONE = 2


class DiskPolling:
    """The publisher thread calls `scan` and `schedule`; the rest is guarded by its lock."""

    def __init__(self, files: JobFilePublisher | None, *, standby: bool) -> None:
        self._files = files
        self._standby = standby
        self._ending = _Ending.NO
        self._ending_passed_on = True
        """Whether `scan` has passed the present ending on to the job files."""
        self.next_at: float | None = 0.0
        """When to scan again, by `time.monotonic`; None for never."""
        self.unsettled = False
        """Whether the end of the training waits for a file."""

    @property
    def trainer_gone(self) -> bool:
        """Whether the training process is known to be gone."""
        return self._ending is _Ending.GONE

    @property
    def waiting(self) -> tuple[str, ...]:
        """Paths of job files that are not in the store."""
        return self._files.waiting if self._files is not None else ()

    @property
    def reason(self) -> str | None:
        """Why one of them is not in the store."""
        return self._files.reason if self._files is not None else None

    def end(self, *, gone: bool) -> None:
        """Note that the training process ends, or is gone."""
        self._ending_passed_on = self._ending_passed_on and self._ending is not _Ending.NO
        self._ending = _Ending.GONE if gone else max(self._ending, _Ending.SOON)

    def cancel_end(self) -> None:
        """Note that the training goes on, or another process may take over."""
        self._ending = _Ending.NO

    def scan(self) -> bool:
        """Scan for job files if it is time; return whether one may be sent."""
        files = self._files
        if files is None:
            return False
        again, self._ending_passed_on = not self._ending_passed_on, True
        ending = self._ending
        if ending is _Ending.NO or again:
            files.cancel_end()
        if ending is not _Ending.NO:
            files.end(gone=ending is _Ending.GONE)
        if time.monotonic() >= files.next_scan:
            files.scan()
        return files.ready

    def schedule(self) -> None:
        """Set `next_at` and `unsettled`."""
        if self._files is not None:
            self.next_at, self.unsettled = self._files.next_scan, self._files.unsettled
        else:
            self.next_at = time.monotonic() + _STANDBY_S if self._standby else None

    def complaints(self) -> list[str]:
        """Why files cannot be sent, found since the last call."""
        if self._files is None:
            return []
        found, self._files.complaints = self._files.complaints, []
        return found
