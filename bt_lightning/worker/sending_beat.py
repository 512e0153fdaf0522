"""Shows the workers of other ranks that this one is still sending."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError

if TYPE_CHECKING:
    from bt_lightning.store.transfer.store_parts import PartsInStore

_BEAT_S: Final = 5.0
"""Seconds between two signs of life."""


class SendingBeat:
    """A sign of life in a save's meeting place at most once in `_BEAT_S`, while bytes are sent."""

    def __init__(self, parts: PartsInStore, save: str, rank: int) -> None:
        self._parts, self._save, self._rank = parts, save, rank
        self._last = time.monotonic()
        self._count = 0
        self._beating = threading.Lock()

    def sent(self, _: int) -> None:
        """Some bytes were sent; called by several threads."""
        if time.monotonic() - self._last < _BEAT_S or not self._beating.acquire(blocking=False):
            return
        try:
            self._count += 1
            with contextlib.suppress(CheckpointError, OSError):  # the upload meets it as well
                self._parts.beat(self._save, self._rank, self._count)
            self._last = time.monotonic()
        finally:
            self._beating.release()
