"""Keeps the store's ledger of fits like the directory's, and lets the job be found by its path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.fit_ledger import PARTS, ledger_part
from bt_lightning.localdir.fit_ledger_file import ledger_parts, ledger_version
from bt_lightning.path_layout import under
from bt_lightning.store.catalog.jobs_of_path import note_job_of_path

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.store.interface import Store
    from bt_lightning.store.lease import Lease


class FitLedgerPublisher:
    """Puts the ledger of one directory below one prefix; the publisher thread calls it."""

    def __init__(self, root: Path, prefix: str) -> None:
        self._root = root
        self._prefix = prefix
        self._version: tuple[int, ...] | None = None
        self._sent: list[bytes] | None = None

    def forget(self) -> None:
        """Trust nothing known of the store."""
        self._version = self._sent = None

    def send(self, store: Store, lease: Lease) -> None:
        """Put what changed of the ledger since the last time, by whoever holds the lease.

        Raises:
            StoreError: the store refused.
        """
        try:
            version = ledger_version(self._root)
            parts = ledger_parts(self._root) if version != self._version else []
        except OSError:  # a disk that fails must hold up no checkpoint, whose manifest has it too
            return
        if not parts:
            return
        lease.confirm()
        if self._sent is None:
            note_job_of_path(store, self._prefix)  # first: it says nothing without the ledger
            self._delete_other_parts(store, len(parts))
        sent = self._sent or []
        for number, part in enumerate(parts, 1):
            if sent[number - 1 : number] != [part]:
                store.put(self._key(number), part)
        self._version, self._sent = version, parts

    def _delete_other_parts(self, store: Store, count: int) -> None:
        """Delete those of a ledger that a lost disk had, and that is written anew."""
        if count < PARTS and store.size(self._key(count + 1)) is not None:
            store.delete([self._key(number) for number in range(count + 1, PARTS + 1)])

    def _key(self, number: int) -> str:
        return under(self._prefix, ledger_part(number))
