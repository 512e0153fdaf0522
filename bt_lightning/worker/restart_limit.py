"""The limit on restarts of a worker: deaths in a short time without a commit between them."""

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

MAX_DEATHS: Final = 5
"""So many deaths within `WINDOW_S`, without a commit between them, end the restarts."""
WINDOW_S: Final = 600.0


class RestartLimit:
    """Counts the deaths of one run's workers. What a dead one left undone lies on the disk."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Each death is logged in the events of the checkpoint directory `root`."""
        self._root = root
        self._clock = clock
        self._deaths_at: deque[float] = deque()

    def add(self, message: str) -> None:
        """Count one more death, told by `message`.

        Raises:
            WorkerDiedError: it is the last that is allowed. The count begins anew.
        """
        now = self._clock()
        self._deaths_at.append(now)
        while self._deaths_at[0] <= now - WINDOW_S:
            self._deaths_at.popleft()
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(self._root, "worker_died", error=message)
        if len(self._deaths_at) == MAX_DEATHS:
            self._deaths_at.clear()
            raise WorkerDiedError(message)
        log.warning("%s", message)

    def reset(self) -> None:
        """Begin to count anew: a checkpoint was committed."""
        self._deaths_at.clear()

    def death_message(self, code: int | None) -> str:
        """The text for a worker that ended with exit code `code`; None: it is not known."""
        how = "unknown" if code is None else code  # where SIGCHLD is ignored
        return (
            f"the bt_lightning worker process died (exit code {how}, death"
            f" {len(self._deaths_at) + 1} of {MAX_DEATHS} without a commit between); what it had to"
            " do lies on disk and is done by the next one"
        )
