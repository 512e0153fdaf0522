"""Which folders of a store were given to saves of several ranks: each to one save, for ever.

A reservation goes first when its save is committed, before the claim. So of a folder whose claim is
gone and whose reservation is there, the save was given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointExistsError
from bt_lightning.path_layout import parts_folder, under
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.unpublish import own_keys

if TYPE_CHECKING:
    from bt_lightning.store.interface import Store

_FOLDERS: Final = "folders"


class Reservations:
    """The reservations of one job."""

    def __init__(self, store: Store, prefix: str) -> None:
        """`prefix` is that of rank 0's node."""
        self._store = store
        self._prefix = prefix
        self._place = f"{parts_folder(prefix)}/{_FOLDERS}"

    def reserve(self, save: str, folder: str) -> bool:
        """Give the folder to the save, unless it holds anything or was given to another.

        Raises:
            StoreError: the store refused.
        """
        base = under(self._prefix, folder)
        if own_keys(self._store, base) or self._store.size(base) is not None:
            return False
        try:
            self._store.put_new(self._key(folder), save.encode("ascii"))
        except CheckpointExistsError:
            return False
        return True

    def holder(self, folder: str) -> str | None:
        """The save that a folder was given to and that is not committed; None if there is none."""
        found = read_any(self._store, self._key(folder))
        return None if found is None else found.decode("ascii", errors="replace")

    def free(self, folder: str) -> None:
        """Delete the reservation of a save that is committed."""
        self._store.delete([self._key(folder)])

    def folders(self) -> list[str]:
        """All folders with a reservation."""
        listed = self._store.list(self._place)
        return [info.key.removeprefix(f"{self._place}/") for info in listed]

    def _key(self, folder: str) -> str:
        return f"{self._place}/{folder}"
