"""Room on the disk for one more checkpoint, made by deleting what the store has as well.

What the retention policy removes goes first, on the caller's thread: that needs no store. All else
is done by the publisher's thread, between two of its units: it alone knows the store, and has the
lease.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointError, StorePermanentError, StoreTransientError
from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.disk_space import measure
from bt_lightning.localdir.kept_parts import drop_kept_parts
from bt_lightning.worker.evict_local_copies import Eviction, evict_copies
from bt_lightning.worker_messages import FreedSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.localdir.disk_space import DiskSpace
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.worker.disk_removals import DiskRemovals
    from bt_lightning.worker.publisher_thread import PublisherThread


class DiskSpaceMaker:
    """Makes room in one checkpoint directory; used by the committer and by the worker's loop."""

    def __init__(
        self,
        root: Path,
        budget: int | None,
        publisher: Callable[[], PublisherThread | None],
        removals: Callable[[], DiskRemovals | None] = lambda: None,
        *,
        has_store: bool,
    ) -> None:
        """`publisher` and `removals` give None as long as nothing may be deleted."""
        self._has_store = has_store
        self._root = root
        self._budget = budget
        self._publisher = publisher
        self._removals = removals

    def measure(self) -> DiskSpace:
        """Look at the disk."""
        return measure(self._root, self._budget)

    def stored(self, checkpoint_id: str) -> Manifest | None:
        """The newest generation of an id that the store is known to hold."""
        publisher = self._publisher()
        return publisher.newest(checkpoint_id) if publisher is not None else None

    def stream(
        self, describe: Callable[[int], Manifest], sources: Mapping[str, DescribedSource]
    ) -> Manifest:
        """Commit in the store, as `SmallDiskTasks.stream`.

        Raises:
            StoreError: it cannot be used, or refuses.
            CheckpointExistsError: somebody else committed it just now.
        """
        return self.publisher().perform(lambda tasks: tasks.stream(describe, sources))

    def publisher(self) -> PublisherThread:
        """The thread that commits in the store.

        Raises:
            StoreError: there is none, or the store has just refused something.
        """
        publisher = self._publisher()
        if publisher is None or not self._has_store:
            msg = "there is no store" if publisher is not None else "nothing is published yet"
            raise StorePermanentError(msg)
        if (refusal := publisher.refusal) is not None:
            raise StoreTransientError(refusal)
        return publisher

    def make(
        self, size: int, checkpoint_id: str, *, more: bool = False, send: bool = False
    ) -> FreedSpace:
        """Have room for `size` bytes: delete what may go, then evict, as far as it is needed.

        With `more`, the disk refused although there seemed to be room: evict one at least. With
        `send`, what waits for the store is sent first, so that its copies may go: for a caller that
        cannot stream.

        Raises:
            OSError: the directory cannot be read.
        """
        disk = self.measure()
        if disk.room >= size and not more:
            return FreedSpace(fits=True)
        if self._cleared(size, more=more):
            return FreedSpace(fits=True)
        publisher = self._publisher()
        evicted: list[str] = []
        why = "nothing may be deleted before the run has begun, and by rank 0 only"
        if publisher is not None:
            publish = publisher.publish_now if send and self._has_store else None
            plan = Eviction(
                self._root, self._budget, size, checkpoint_id, evicted, more=more, send=publish
            )
            try:
                why = publisher.perform(lambda tasks: evict_copies(tasks, plan, publisher.refusal))
            except (CheckpointError, OSError) as error:
                why = str(error)
        disk = self.measure()
        fits = disk.room >= size and (bool(evicted) or not more)
        reason = f"it needs {size:,} bytes, and {disk.describe()}; {why}"
        return FreedSpace(fits=fits, evicted=tuple(evicted), reason="" if fits else reason)

    def _cleared(self, size: int, *, more: bool) -> bool:
        """Delete what the policy removes, what is being sent last; then what is kept of shards.

        Returns whether there is room then.

        With `more`, only if something went.
        """
        removals = self._removals()
        for sent in (False, True):
            went = 0
            if removals is not None:
                with contextlib.suppress(OSError):  # then it is written, or refused, all the same
                    went = removals.clear(sent=sent)
            if self.measure().room >= size and (went or not more):
                return True
        kept = 0
        with contextlib.suppress(OSError):
            kept = drop_kept_parts(self._root)  # the store has them
        return self.measure().room >= size and (kept > 0 or not more)

    def settle(self) -> None:
        """Wait for the removals that were allowed so far."""
        removals = self._removals()
        if removals is not None:
            removals.settle()

    def retire(self, path: Path, digest: str) -> None:
        """Delete a generation of which the store has a newer one."""
        removals = self._removals()
        if removals is not None:
            removals.retire(path, digest)
        else:
            delete_directory(path, self._root, digest)
