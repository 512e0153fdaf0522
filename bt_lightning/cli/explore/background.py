"""Reading in other threads: one at a time of each group, and only what is still wanted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from textual.worker import get_current_worker

from bt_lightning.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.screen import Screen

READ_ERRORS = (CheckpointError, OSError, MemoryError)
"""What reading may end with, and is said."""
_PAUSE_S = 0.08
"""Seconds that a row must stay chosen before its file is read."""


def reason(error: BaseException) -> str:
    """An error as the command line words it."""
    return f"error: {str(error) or type(error).__name__}"


def read_in_background(
    screen: Screen[Any],
    group: str,
    read: Callable[[], Any],
    show: Callable[[Any], None],
    fail: Callable[[str], None],
    *,
    pause: bool = False,
) -> None:
    """Run `read` in a thread, then `show` what it gives or `fail` with its error, on the screen.

    A later call with the same group makes this one's result unwanted; with `pause`, one that comes
    at once keeps it from reading at all.
    """
    superseded = threading.Event()

    def run() -> None:
        worker = get_current_worker()
        if pause and (superseded.wait(_PAUSE_S) or worker.is_cancelled):
            return
        try:
            found = read()
        except READ_ERRORS as error:
            said = reason(error)
            if not worker.is_cancelled:
                screen.app.call_from_thread(fail, said)
            return
        if not worker.is_cancelled:
            screen.app.call_from_thread(show, found)

    screen.run_worker(run, thread=True, exclusive=True, group=f"read {group}", exit_on_error=True)
