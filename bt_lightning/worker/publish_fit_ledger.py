"""Keeps the store's ledger of fits like the directory's, and lets the job be found by its path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.fit_ledger import LEDGER
from bt_lightning.localdir.fit_ledger_file import ledger_bytes
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
        self._key = under(prefix, LEDGER)
        self._sent: bytes | None = None

    def forget(self) -> None:
        """Trust nothing known of the store."""
        self._sent = None

    def send(self, store: Store, lease: Lease) -> None:
        """Put the ledger, if it is not that of the last time, by whoever holds the lease.

        Raises:
            StoreError: the store refused.
        """
        try:
            ledger = ledger_bytes(self._root)
        except OSError:  # a disk that fails must hold up no checkpoint, whose manifest has it too
            return
        if ledger is None or ledger == self._sent:
            return
        lease.confirm()
        if self._sent is None:
            note_job_of_path(store, self._prefix)  # first: it says nothing without the ledger
        store.put(self._key, ledger)
        self._sent = ledger
