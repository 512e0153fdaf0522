"""What the last tries of a publisher came to, what is said of it, and when it tries again."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import LeaseHeldError, StoreTransientError
from bt_lightning.localdir.disk_errors import may_pass
from bt_lightning.localdir.event_log import note
from bt_lightning.store.retry import backoff
from bt_lightning.worker_messages import WorkFailed

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_RETRY_PERMANENT_S: Final = 60.0
_FRESH_S: Final = 10.0
"""A store that failed so lately is not asked for room again."""


class PublishRetries:
    """Those since the last success. Guarded by the publisher's lock, but for `tell`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._of_disk = False
        self._reported = False
        self._at = 0.0
        self.number = 0
        self.error: str | None = None
        """The last one; None after a success."""
        self.permanent = False
        """Another try will not cure it."""
        self.next_try = 0.0
        """When to try again, by `time.monotonic`."""

    @property
    def refusal(self) -> str | None:
        """Why the store need not be asked just now: its last word, if that was no and is fresh."""
        fresh = time.monotonic() - self._at < _FRESH_S
        return self.error if self.number and fresh and not self._of_disk else None

    def add(self, error: Exception) -> None:
        """One more try failed."""
        self._of_disk = may_pass(error)
        self.error = str(error)
        self.permanent = not self._of_disk and not isinstance(error, StoreTransientError)
        self.number += 1
        self._at = time.monotonic()
        wait_s = _RETRY_PERMANENT_S if self.permanent else backoff(self.number, random.random())
        self.next_try = self._at + wait_s

    def forgive(self) -> None:
        """Try again at once, whatever the last try came to."""
        self.permanent = False
        self.next_try = 0.0

    def forget(self) -> None:
        """A try came to its end, or somebody else is to try."""
        self.number = 0
        self.permanent = self._reported = False
        self.error = None

    def tell(self, error: Exception) -> WorkFailed | None:
        """Note what was just added; return it if the training process has to know."""
        if self.number == 1:  # until the next success it is one failure
            with contextlib.suppress(OSError):
                event = "disk_failed" if self._of_disk else "store_failed"
                note(self._root, event, error=str(error), permanent=self.permanent)
        held = isinstance(error, LeaseHeldError) and self.number > 1  # one that was deleted is not
        if self.permanent or held:  # a person has to know
            if self._reported:
                return None  # the text names a key, so each checkpoint has another
            self._reported = True
            return WorkFailed(what="publishing", error=str(error))
        log.log(
            logging.WARNING if self.number == 1 else logging.DEBUG,
            "the %s failed, trying again: failures=%d error=%s",
            "disk" if self._of_disk else "store",
            self.number,
            error,
        )
        return None
