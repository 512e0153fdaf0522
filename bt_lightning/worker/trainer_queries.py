"""The worker's answers to the training process, at the start of a run or before a direct save."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointError,
    StoreError,
    StorePermanentError,
)
from bt_lightning.path_layout import DOT_DIR, check_checkpoint_id
from bt_lightning.store.catalog.jobs_of_path import find_jobs_of_path, read_fit_ledger
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.interface import Sending
from bt_lightning.store.lease import read_lease
from bt_lightning.store.open_store import open_store
from bt_lightning.store.retry import RetryingStore
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.fetch_to_disk import bring
from bt_lightning.store.transfer.held_memory import with_held_memory
from bt_lightning.store.transfer.resumable_download import check_room, verify_bytes
from bt_lightning.store.transfer.resume_publication import uploads_folder
from bt_lightning.worker_messages import (
    Answer,
    CheckStore,
    Fetch,
    FindJobs,
    FoundJob,
    FreeSpace,
    LeaseSeen,
    ListStore,
    ReadFits,
    ReadLease,
    StoredCheckpoint,
    Verify,
    WorkerConfig,
)

if TYPE_CHECKING:
    from bt_lightning.store.interface import Store
    from bt_lightning.worker.free_disk_space import DiskSpaceMaker

Question = CheckStore | ListStore | ReadFits | FindJobs | ReadLease | Fetch | Verify | FreeSpace

_PROBES = 32
"""Tries of a check: that of another process may delete the object between two calls."""


class TrainerQueries:
    """Answers questions; called by the worker's main loop, which waits for each."""

    def __init__(self, config: WorkerConfig, space: DiskSpaceMaker) -> None:
        self._config = config
        self._root = Path(config.root)
        self._space = space
        self._store: Store | None = None
        self._opening = threading.Lock()

    def answer(self, question: Question) -> Answer:
        """Answer the question, with a value or an error; raises nothing that is expected."""
        try:
            return Answer(self._value(question))
        except (CheckpointError, OSError) as error:
            return Answer(None, error)

    def _value(self, question: Question) -> object:
        value: object = None
        match question:
            case CheckStore():
                self._check()
            case ListStore():
                value = self._list()
            case ReadFits():
                value = read_fit_ledger(self._retrying(), self._config.prefix)
            case FindJobs(name, older):
                found = find_jobs_of_path(self._retrying(), self._config.prefix, name, older)
                value = [FoundJob(job, ledger) for job, ledger in found.items()]
            case ReadLease(prefix):
                value = LeaseSeen(*read_lease(self._retrying(), prefix))
            case Fetch(folder, target):
                value = self._fetch(folder, target)
            case Verify(folder, sizes_only):
                self._verify(folder, sizes_only=sizes_only)
            case FreeSpace(size, checkpoint_id):
                value = self._space.make(size, checkpoint_id, send=True)
        return value

    def _retrying(self) -> RetryingStore:
        return RetryingStore(self.open())

    def open(self) -> Store:
        """The store, the same for every thread; each call to it is tried once."""
        config = self._config
        with self._opening:
            if self._store is None:
                self._store = open_store(
                    config.store_url or "",
                    config.storage_options,
                    uploads_folder(self._root),
                    Sending(bytes_s=config.upload_bytes_s, content_md5=config.content_md5),
                )
            return self._store

    def _check(self) -> None:
        """Check that the store can be written, read and cleaned up."""
        store = RetryingStore(self.open(), tries=2)
        key = f"{self._config.prefix}/{DOT_DIR}-probe"  # one name: a killed check leaves no trail
        try:
            for _ in range(_PROBES):
                store.put_new(key, b"probe")
                found = store.read(key)
                if found is not None:
                    break  # else another process's check deleted it: they share the name
            if found != b"probe":
                msg = f"{store.name} does not give back what was written to it"
                raise StorePermanentError(msg)
        finally:
            with contextlib.suppress(StoreError):
                store.delete([key])

    def _list(self) -> list[StoredCheckpoint]:
        listing = list_job(self._retrying(), self._config.prefix)
        return [
            StoredCheckpoint(folder=folder, manifest=data)
            for folder, data in listing.committed.items()
        ]

    def _fetch(self, folder: str, target: str) -> str:
        final = self._root / check_checkpoint_id(target)
        reader = self._reader(folder)
        check_room(reader, self._space.measure())
        bring(with_held_memory(reader, self._root), self._root, final)
        return str(final)

    def _verify(self, folder: str, *, sizes_only: bool) -> None:
        reader = self._reader(folder)
        if not sizes_only:
            verify_bytes(reader)
        for entry in reader.manifest.files:
            reader.check(entry)

    def _reader(self, folder: str) -> StoreReader:
        return StoreReader(self._retrying(), self._config.prefix, folder)
