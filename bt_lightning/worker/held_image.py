"""Holds the image of the newest save when the trainer was killed, for the next start here.

The next run deletes the record when it trains; then, or at the deadline, or at SIGTERM, the worker
ends and the kernel frees the memory. An arena that a later save has overwritten is held as well:
whoever reads compares every block with the manifest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.localdir.held_images import HeldImage, offer_image, started_at

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.worker_messages import CommitImage

_LOOK_S: Final = 0.25
_GRACE_S: Final = 5.0
"""From the end of the time until the process ends though its disk hangs."""


class ImageHolder:
    """Owns the descriptors of the arenas; used by the commit thread and the worker's loop."""

    def __init__(self, root: Path, seconds: float) -> None:
        """`seconds` is how long an image is held behind the end of the trainer; 0: not at all."""
        self._root = root
        self._seconds = seconds
        self._changing = threading.Lock()
        self._descriptors: dict[int, int] = {}
        self._newest: tuple[CommitImage, dict[str, tuple[int, int]]] | None = None
        self._record: Path | None = None
        self._until = 0.0
        self._given_up = threading.Event()

    @property
    def has_image(self) -> bool:
        """Whether there is something to hold."""
        with self._changing:
            return self._newest is not None

    def give_up(self) -> None:
        """SIGTERM: somebody waits for the end of every process here."""
        self._given_up.set()

    def share(self, index: int, descriptor: int) -> None:
        """An arena is shared by the trainer."""
        with self._changing:
            self._descriptors[index] = descriptor

    def drop(self, index: int) -> None:
        """An arena was dropped by the trainer."""
        with self._changing:
            descriptor = self._descriptors.pop(index, None)
        if descriptor is not None:
            os.close(descriptor)

    def note(self, job: CommitImage, entries: Iterable[FileEntry]) -> None:
        """The image of a save is durable: `entries` are its files."""
        offsets = {image.path: image.offset for image in job.files}
        files = {each.xxh3_128: (offsets[each.path], each.size) for each in entries if each.size}
        with self._changing:
            self._newest = job, files

    def offer(self) -> None:
        """The trainer was killed, and all that it had begun has its outcome: say what is held.

        Called by the commit thread.
        """
        with self._changing:
            job, files = self._newest or (None, {})
            descriptor = None if job is None else self._descriptors.get(job.arena)
        is_wanted = self._seconds > 0 and not self._given_up.is_set()
        if not is_wanted or job is None or descriptor is None:
            return
        pid = os.getpid()
        self._until = time.monotonic() + self._seconds
        with contextlib.suppress(OSError):  # a restart reads the disk
            self._record = offer_image(
                self._root,
                HeldImage(
                    pid=pid,
                    started=started_at(pid),
                    descriptor=descriptor,
                    checkpoint_id=job.checkpoint_id,
                    until=time.time() + self._seconds,
                    files=files,
                ),
            )

    def wait(self, deadline: threading.Timer | None) -> None:
        """Return when a run has taken the image, or its time is over, or nobody wants it.

        `deadline` ends the process: it was that of the store. Called by the loop, at the end, in
        the main thread.
        """
        if self._record is None:
            return
        signal.signal(signal.SIGTERM, lambda *_: self.give_up())
        ends = threading.Timer(self._until - time.monotonic() + _GRACE_S, os._exit, [0])
        ends.daemon = True
        ends.start()
        if deadline is not None:
            deadline.cancel()
        _leave_output()
        while self._record.exists() and time.monotonic() < self._until:
            if self._given_up.wait(_LOOK_S):
                break
        with contextlib.suppress(OSError):
            self._record.unlink(missing_ok=True)


def _leave_output() -> None:
    """Who reads what the dead trainer printed gets its end; multiprocessing's tracker ends too."""
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001
    if tracker._fd is not None:  # noqa: SLF001
        os.close(tracker._fd)  # noqa: SLF001
        tracker._fd = None  # noqa: SLF001
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
