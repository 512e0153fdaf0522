"""Deletes from the disk what the retention policy removes; needs no store, and waits for none.

A thread of the worker's, apart from the one that publishes: a store that is slow, hangs, refuses or
answers rubbish must not fill the disk with checkpoints that are to go.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.atomic_directory import delete_directory, sweep_trash
from bt_lightning.localdir.commit_sidecar import delete_foreign
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.protection import is_protected_local
from bt_lightning.localdir.read_locks import delete_unless_read
from bt_lightning.localdir.removal_requests import requested_local_removals
from bt_lightning.localdir.sidecars import is_sidecar
from bt_lightning.retention import (
    POLICY,
    FirstOf,
    KeepDigests,
    KeepLatest,
    Tier,
    TierCheckpoint,
    removable,
)
from bt_lightning.store.retry import backoff
from bt_lightning.worker.commit_lock import CommitLock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.retention import RetentionPolicy

log = logging.getLogger(__name__)

SETTLE_S: Final = 60.0
"""Longest wait of a commit for the removals that the one before it has allowed."""
_OTHERS_S: Final = 1.0
"""Seconds until the next look, while the worker of another run may commit."""
_NEWEST: Final = (KeepLatest(1), KeepLatest(1, resumable=True))
"""They stay until a newer one is committed, though the policy may remove them by then: training may
always be one save ahead of the disk. So what is older than they are need not stay beside them."""


class DiskRemovals:
    """Deletes from one checkpoint directory. Its methods may be called by any thread."""

    def __init__(
        self,
        root: Path,
        resumed_from: Collection[str],
        lock: CommitLock | None = None,
        done: Callable[[], None] = lambda: None,
        *,
        policy: RetentionPolicy = POLICY,
        start: bool = False,
    ) -> None:
        """`resumed_from` are digests; `done` is called when `idle` may change.

        With `start`, a thread of its own looks at each `wake`; else only `clear` does anything.
        """
        self._root = root
        self._resumed_from = frozenset(resumed_from)
        self.policy = policy
        """What decides, here and in the store."""
        self._lock = lock if lock is not None else CommitLock(root)
        self._done = done
        self._sending: str | None = None
        self._deleting = threading.Lock()
        self._changed = threading.Condition()
        self._failures = 0
        self._waits = False
        """Whether the last look was not ours to have: the worker of another run may commit."""
        self._left = False
        self._asked = self._working = start
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning removals")
        self.error: str | None = None
        """Why the last look did not delete all that may go."""
        if start:
            self._thread.start()

    # the thread

    @property
    def idle(self) -> bool:
        """Whether every look that was asked for is over."""
        with self._changed:
            return not self._asked and not self._working

    def wake(self) -> None:
        """Something was committed, published or asked to go: look; never waits."""
        with self._changed:
            self._asked = self._thread.is_alive()
            self._changed.notify_all()

    def settle(self, limit_s: float = SETTLE_S) -> None:
        """Wait until every look that was asked for is over, but not for ever."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked and not self._working, limit_s)

    def leave(self) -> None:
        """Have the last look, at what was being sent too: nothing is sent after it."""
        with self._changed:
            self._left = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # the next start tries again
            self.clear(sent=True)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._working = False
                self._changed.notify_all()
            self._done()
            with self._changed:
                wait_s = _OTHERS_S if self._waits else None
                wait_s = backoff(self._failures, 1.0) if self._failures else wait_s
                self._changed.wait_for(lambda: self._asked or self._left, wait_s)
                if self._left:
                    return
                self._asked, self._working = False, True
            self._look()

    def _look(self) -> None:
        try:
            self.clear()
        except OSError as error:
            self.error = str(error)
        if self.error is None:
            self._failures = 0
            return
        self._failures += 1
        if self._failures == 1:
            log.warning("what may go from the disk stays for now: %s", self.error)
            with contextlib.suppress(OSError):  # an event is no checkpoint
                note(self._root, "removal_failed", error=self.error)

    # what may go

    def look(self) -> tuple[dict[str, LocalCheckpoint], Tier]:
        """What is committed on the disk, by its place; and the same as the policy is asked of it.

        Raises:
            OSError: the directory cannot be read.
        """
        # Requests first: what is committed and asked to go meanwhile counts in the next look.
        requests = requested_local_removals(self._root)
        local = {found.path.as_posix(): found for found in list_committed(self._root).found}
        protected = {f.manifest.digest for f in local.values() if is_protected_local(f.path)}
        return local, Tier(
            name="disk",
            checkpoints=[TierCheckpoint.of(place, f.manifest) for place, f in local.items()],
            requests=requests,
            resumed_from=self._resumed_from,
            protected=protected,
        )

    def clear(self, *, sent: bool = False) -> int:
        """Delete what the policy removes and invariant 4 allows, and the trash; return how many.

        Nothing, while the worker of another run may commit here. With `sent`, also what is being
        sent to the store just now: its publication is dropped.

        Raises:
            OSError: the directory cannot be read.
        """
        with self._lock.held() as mine, self._deleting:
            self._waits = not mine
            if not mine:
                return 0
            self.error = None
            sweep_trash(self._root)
            local, tier = self.look()
            sending = self._sending
            being_sent = frozenset() if sending is None or sent else frozenset({sending})
            policy = FirstOf((*_NEWEST, KeepDigests(being_sent), self.policy))
            return sum(self._removed(local[one.place]) for one in removable(tier, policy))

    def _removed(self, found: LocalCheckpoint) -> bool:
        """Delete one; what the disk refuses is tried again, and keeps no other from going."""
        try:
            delete = delete_foreign if is_sidecar(found.path) else delete_directory
            return delete(found.path, self._root, found.manifest.digest)
        except (CheckpointError, OSError) as error:
            self.error = f"{found.path} could not be deleted: {error}"
            return False

    @contextlib.contextmanager
    def sending(self, manifest: Manifest) -> Iterator[None]:
        """Let this one stay while it is sent; called by the publisher's thread.

        Or a store that is slower than the saves would never have one whole.
        """
        self._sending = manifest.digest
        try:
            yield
        finally:
            self._sending = None
            self.wake()

    # what goes for another reason

    def evict(self, path: Path) -> bool:
        """Delete a copy of what the store has, unless somebody reads it; whether it is gone."""
        with self._deleting:  # or it might be what lets another one go just now
            return delete_unless_read(path, self._root)

    def retire(self, path: Path, digest: str) -> None:
        """Delete a generation of which the store has a newer one."""
        with self._deleting:
            delete_directory(path, self._root, digest)
