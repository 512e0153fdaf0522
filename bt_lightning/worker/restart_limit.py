"""How often a worker may die: not how often in all, but how often without coming to anything."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import WorkerDiedError
from bt_lightning.localdir.event_log import note

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

MOST: Final = 5
"""So many deaths within `WINDOW_S`, without a commit between them, are more than is sane."""
WINDOW_S: Final = 600.0


class RestartLimit:
    """Those of the workers of one run that count; what they had to do is read off the disk."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Each is an event of the checkpoint directory `root`."""
        self._root = root
        self._clock = clock
        self._times: deque[float] = deque()

    def add(self, obituary: str) -> None:
        """One more died.

        Raises:
            WorkerDiedError: that is one too many. The next one begins to count anew.
        """
        now = self._clock()
        self._times.append(now)
        while self._times[0] <= now - WINDOW_S:
            self._times.popleft()
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(self._root, "worker_died", error=obituary)
        if len(self._times) == MOST:
            self._times.clear()
            raise WorkerDiedError(obituary)
        log.warning("%s", obituary)

    def forget(self) -> None:
        """A worker came to something: a checkpoint is committed."""
        self._times.clear()

    def obituary(self, code: int | None) -> str:
        """What is said of one that ended with `code`."""
        how = "unknown" if code is None else code  # where SIGCHLD is ignored
        return (
            f"the bt_lightning worker process died (exit code {how}, death {len(self._times) + 1}"
            f" of {MOST} without a commit between); what it had to do lies on disk and is done by"
            " the next one"
        )
