"""The failed tries of a publisher since its last success: when to try again, what to report."""

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
"""Seconds after a failure in which the store is not asked to help free the disk."""


class PublishRetries:
    """The failures since the last success. Guarded by the publisher's lock, except `report`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._of_disk = False
        self._reported = False
        self._at = 0.0
        self.count = 0
        self.total = 0
        """All failures, also those before the last success."""
        self.error: str | None = None
        """The last failure's message; None after a success."""
        self.permanent = False
        """Whether another try will not cure it."""
        self.next_try = 0.0
        """When to try again, by `time.monotonic`."""

    @property
    def refusal(self) -> str | None:
        """The store's last error, if it is so fresh that asking again is pointless; else None."""
        fresh = time.monotonic() - self._at < _FRESH_S
        return self.error if self.count and fresh and not self._of_disk else None

    def add(self, error: Exception) -> None:
        """Count one more failure, and set `next_try`."""
        self._of_disk = may_pass(error)
        self.error = str(error)
        self.permanent = not self._of_disk and not isinstance(error, StoreTransientError)
        self.count += 1
        self.total += 1
        self._at = time.monotonic()
        wait_s = _RETRY_PERMANENT_S if self.permanent else backoff(self.count, random.random())
        self.next_try = self._at + wait_s

    def retry_now(self) -> None:
        """Try again at once, whatever the last try gave."""
        self.permanent = False
        self.next_try = 0.0

    def reset(self) -> None:
        """Forget all failures: a try succeeded, or another worker takes over."""
        self.count = 0
        self.permanent = self._reported = False
        self.error = None

    def report(self, error: Exception) -> WorkFailed | None:
        """Log the failure just added; return an event if the training process must know."""
        if self.count == 1:  # the later ones until a success are the same failure
            with contextlib.suppress(OSError):
                event = "disk_failed" if self._of_disk else "store_failed"
                note(self._root, event, error=str(error), permanent=self.permanent)
        # a lease that its owner deletes is free at the next try
        held = isinstance(error, LeaseHeldError) and self.count > 1
        if self.permanent or held:  # only a person can help
            if self._reported:
                return None  # once: the text names a key, so it differs each time
            self._reported = True
            return WorkFailed(what="publishing", error=str(error))
        log.log(
            logging.WARNING if self.count == 1 else logging.DEBUG,
            "the %s failed, trying again: failures=%d error=%s",
            "disk" if self._of_disk else "store",
            self.count,
            error,
        )
        return None
