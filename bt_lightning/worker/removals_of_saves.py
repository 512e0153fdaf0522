"""Removal requests for saves that are not committed yet."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.removal_requester import Requester

if TYPE_CHECKING:
    from pathlib import Path

_REMEMBERED = 64


class RemovalsOfSaves:
    """Remembers which saves are unwanted, and requests their removal when they are committed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._guard = threading.Lock()
        self._unwanted: set[int] = set()
        self._digests: dict[int, str] = {}
        """Manifest digest of each of the last saves that were committed, by number."""

    def ask(self, number: int, *, under_way: bool) -> None:
        """Request the removal of a save, at once or when it is committed.

        `under_way` says whether it may still be; one that is neither is not remembered.
        """
        with self._guard:
            digest = self._digests.get(number)
            if digest is None and under_way:
                self._unwanted.add(number)
        if digest is not None:
            self._request(digest)

    def is_asked_for(self, number: int) -> bool:
        """Whether a save that is not committed yet is unwanted."""
        with self._guard:
            return number in self._unwanted

    def ended(self, number: int, digest: str | None = None) -> None:
        """Note the end of a save, with its manifest's digest if it was committed."""
        with self._guard:
            unwanted = number in self._unwanted
            self._unwanted.discard(number)
            if digest is not None:
                self._digests[number] = digest
                while len(self._digests) > _REMEMBERED:
                    del self._digests[next(iter(self._digests))]
        if unwanted and digest is not None:
            self._request(digest)

    def _request(self, digest: str) -> None:
        with contextlib.suppress(OSError):  # the training process asks as well
            request_local_removal(self._root, digest, Requester.TRAINING)
