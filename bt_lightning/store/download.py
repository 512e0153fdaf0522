"""Objects of a store to local files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.store.sources import PIECE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.store.port import Store


def download(store: Store, key: str, target: Path) -> None:
    """Copy one object to the new file `target`; the caller verifies it.

    Raises:
        CheckpointNotFoundError: there is no such object.
        StoreError: the store refused.
    """
    size = store.size(key)
    if size is None:
        msg = f"there is no {store.name}/{key}"
        raise CheckpointNotFoundError(msg)
    buffer = bytearray(min(size, PIECE_BYTES))
    with target.open("xb", buffering=0) as stream:
        for offset in range(0, size, PIECE_BYTES):
            piece = memoryview(buffer)[: min(PIECE_BYTES, size - offset)]
            store.read_into(key, offset, piece)
            os.write(stream.fileno(), piece)
