"""The worker's thread that sends the logs to the store, beside the checkpoints: it holds up none.

A few requests a minute, and none while nothing is logged. While the store is away nothing waits:
what was logged lies on the disk, up to the size of its files there.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError, StorePermanentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.worker.send_logs import LogSender

EVERY_S: Final = 15.0
"""Seconds between two looks at the files, each of one request a log that has grown, or of none."""
_RETRY_S: Final = 60.0
"""Seconds after a refusal until the next try."""
_END_S: Final = 10.0
"""Seconds that the end of a training waits for its last lines to be sent."""
_LEAVE_S: Final = 2.0
_REFUSALS: Final = 2
"""So many in a row are reported, once: a store that refuses everything says so by then."""
_LOCK_S: Final = 1.0
"""Seconds between two looks whether this worker sends by now."""


class LogThread:
    """Calls a `LogSender` again and again. Other threads of the worker call the methods."""

    def __init__(
        self,
        sender: LogSender,
        owns: Callable[[], bool],
        report: Callable[[str | None], None],
    ) -> None:
        """Start the thread.

        `owns` is whether this worker, and no other one of the directory, sends. `report` is called
        with why the store refuses logs, once; and with None when `settled` may have changed.
        """
        self._sender = sender
        self._owns = owns
        self._report = report
        self._changed = threading.Condition()
        self._asked = False
        """Whether everything is to be sent now."""
        self._ending_since: float | None = None
        self._failed_at = 0.0
        self._sent: object = None
        """What the sender had seen at the last try, if that left nothing."""
        self._refusals = 0
        """Of the store, in a row, that another try will not cure."""
        self._sending = self._left = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning logs")
        self._thread.start()

    @property
    def settled(self) -> bool:
        """Whether the store has all that was logged, or cannot have it; asks for it.

        Called again and again by the worker's main loop, when the training has ended.
        """
        if not self._owns():
            return True
        seen, now = self._sender.seen(), time.monotonic()
        with self._changed:
            if seen == self._sent:
                return True
            if self._ending_since is None:
                self._ending_since = now
            if self._failed_at > self._ending_since:
                return True
            if not self._sending:
                self._ask()
            return now - self._ending_since > _END_S

    def hurry(self) -> None:
        """Send everything soon: the process may be killed."""
        with self._changed:
            self._ask()

    def go_on(self) -> None:
        """The training goes on after all."""
        with self._changed:
            self._ending_since = None

    def leave(self) -> None:
        """Send nothing more; waits 2 s at most for what is under way."""
        with self._changed:
            self._left = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._sending, _LEAVE_S)

    def _ask(self) -> None:
        self._asked = True
        self._changed.notify_all()

    def _run(self) -> None:
        wait_s = EVERY_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or self._asked, wait_s)
                if self._left:
                    return
                asked, self._asked = self._asked, False
                self._sending = owns = self._owns()
            wait_s = self._try(ending=asked) if owns else _LOCK_S
            with self._changed:
                self._sending = False
                self._changed.notify_all()
            if owns:
                self._report(None)

    def _try(self, *, ending: bool) -> float:
        """Send what was logged; return the seconds until the next try."""
        seen = self._sender.seen()
        if seen == self._sent:
            return EVERY_S
        try:
            left = self._sender.send(ending=ending)
        except (CheckpointError, OSError) as error:
            self._sender.forget()
            with self._changed:
                self._sent, self._failed_at = None, time.monotonic()
            self._refusals += isinstance(error, StorePermanentError)
            if self._refusals == _REFUSALS:
                self._report(f"the logs are not in the store: {error}")
            return _RETRY_S
        self._refusals = 0
        with self._changed:
            self._sent = None if left else seen
        return EVERY_S
