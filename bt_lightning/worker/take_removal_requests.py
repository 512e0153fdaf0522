"""Takes over what was asked to go in the store: disk and store are then treated alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.store.catalog.removal_requests import (
    forget_removals,
    requested_stored_removals,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.store.interface import Store


def take_requests(root: Path, store: Store, prefix: str, wake: Callable[[], None]) -> None:
    """Move the removal requests of the store to the disk; `wake` is called if there are any.

    Raises:
        StoreError: the store refused.
        OSError: the disk refused.
    """
    asked = requested_stored_removals(store, prefix)
    try:
        for digest, by in asked.items():
            request_local_removal(root, digest, by)
    finally:  # a disk that is full takes a request, though not who asks
        if asked:
            wake()
    forget_removals(store, prefix, asked)
