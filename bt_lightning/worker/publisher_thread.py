"""Publishes and deletes, unit by unit, and tries again; a thread of the worker."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.errors import CheckpointError, StoreError
from bt_lightning.localdir.disk_errors import may_pass
from bt_lightning.worker.calls_between_threads import TURN_S, ThreadCalls
from bt_lightning.worker.disk_polling import DiskPolling
from bt_lightning.worker.publish_report import published
from bt_lightning.worker.publish_retries import PublishRetries
from bt_lightning.worker.publisher_lock import PublisherLockWantedError
from bt_lightning.worker_messages import WorkFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.localdir.local_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.worker.calls_between_threads import ThreadCall
    from bt_lightning.worker.early_upload import EarlyUpload
    from bt_lightning.worker.publisher_lock import PublisherLock
    from bt_lightning.worker.publisher_tasks_small_disk import SmallDiskTasks
    from bt_lightning.worker_messages import Published

T = TypeVar("T")
_LOCK_S = 0.1
_LONGEST_S = 60.0
_LEAVE_S = 2.0
_OTHERS_S = 10.0
"""Longest wait of a worker whose training process is gone for another to leave the directory."""


class PublisherThread:
    """The thread that carries out the duties of one directory.

    `say` tells the training process; it is called with None when `idle` may have changed.

    Every attribute is guarded by `changed`, which is notified when any of them changes.
    """

    def __init__(
        self,
        root: Path,
        duties: SmallDiskTasks,
        turn: PublisherLock,
        say: Callable[[Published | WorkFailed | None], None],
        *,
        standby: bool = False,
    ) -> None:
        self.changed = threading.Condition()
        self._root = root
        self._duties = duties
        self._say = say
        self._turn = turn
        self._standby = standby
        self._looks = DiskPolling(duties.files, standby=standby)
        self._offer: EarlyUpload | None = None
        self._sending: EarlyUpload | None = None
        self._errands: ThreadCalls[SmallDiskTasks] = ThreadCalls(self.changed)
        self._failures = PublishRetries(root)
        self._has_work = True
        self._working = False
        self._left = False
        with contextlib.suppress(OSError):  # it is full already, or gone
            duties.prepare()
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning publish")
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        with self.changed:
            return not self._has_work and not self._working and not self._looks.unsettled

    @property
    def owns(self) -> bool:
        """Whether this worker, and no earlier run's, publishes from the directory."""
        return self._turn.held

    def waiting(self) -> tuple[str, ...]:
        """Ids of what is committed here and not in the store; then the paths of files."""
        try:
            ids = tuple(found.manifest.checkpoint_id for found in self._duties.outbox())
        except OSError as error:
            ids = (f"what lies on the disk, which cannot be read ({error})",)
        return ids + self._looks.waiting

    @property
    def reason(self) -> str | None:
        """What stands in the way of something, if anything does."""
        return self._failures.error or self._looks.reason

    @property
    def permanent(self) -> bool:
        """Whether the last try failed in a way that another will not cure."""
        return self._failures.permanent

    def wake(self) -> None:
        """The disk changed: look again."""
        with self.changed:
            self._has_work = True
            if self.permanent:
                self._failures.next_try = 0.0
            self.changed.notify_all()

    def offer(self, offer: EarlyUpload) -> None:
        """Files of a checkpoint that is being committed may be sent, if nothing else is to do.

        Called by the committer's threads; never waits.
        """
        with self.changed:
            if self._failures.number or (self._working and self._sending is not offer):
                return
            self._offer = offer
            self._has_work = True
            self.changed.notify_all()

    def newest(self, checkpoint_id: str) -> Manifest | None:
        """The newest generation of an id that the store is known to hold."""
        return self._duties.newest(checkpoint_id)

    @property
    def refusal(self) -> str | None:
        """Why the store need not be asked just now: its last word, if that was no and is fresh."""
        with self.changed:
            return self._failures.refusal

    def perform(self, task: Callable[[SmallDiskTasks], T]) -> T:
        """Do `task` on the publisher's thread before its next unit; return what it returned.

        Called by other threads of the worker, which wait.

        Raises:
            StoreTransientError: the unit under way does not end, or the worker is leaving.
            CheckpointError, OSError: what `task` raised.
        """
        # The next run's worker may hold the directory while its commits wait for this one's.
        alone = self._looks.gone and not self._turn.held
        return self._errands.wait(task, _OTHERS_S if alone else TURN_S)

    def hurry(self, *, gone: bool) -> None:
        """Look again at once, whatever the last try came to: a training process ends, or is gone.

        A standby worker is told only when it is gone.
        """
        with self.changed:
            self._looks.end(gone=gone)
            self._has_work = True
            self._failures.forgive()
            self.changed.notify_all()

    def go_on(self) -> None:
        """What `hurry` was called for is over, and a training process may come again."""
        with self.changed:
            self._looks.go_on()

    def leave(self) -> None:
        """Let other processes publish; nothing is done after it.

        A unit under way is waited for, but not long: the store may hang.
        """
        with self.changed:
            self._left = True
            self._errands.close()
            idle = self.changed.wait_for(lambda: not self._working, _LEAVE_S)
            if idle and self._turn.held:
                if self._standby and self._may_delete:
                    with contextlib.suppress(OSError):  # the next start tries again
                        self._duties.delete_local()
                self._duties.leave()

    def _run(self) -> None:
        while True:
            with self.changed:
                while (patience := self._patience()) != 0.0:
                    self.changed.wait(patience)
                if self._left:
                    return
                if not self._take_turn():
                    self.changed.wait(_LOCK_S)
                    continue
                errand = self._errands.take()
                asked = self._has_work or self._standby
                if errand is None:
                    self._has_work = False  # a wake during the work asks for another look
                self._working = True
            event = self._work(asked=asked) if errand is None else self._do(errand)
            if event is not None:
                self._say(event)  # before this counts as idle: a drain is answered then
            with self.changed:
                self._looks.plan()
                self._working = False
                self.changed.notify_all()
            self._say(None)

    def _take_turn(self) -> bool:
        try:
            return self._turn.take()
        except OSError as error:  # of a disk that fails
            self._failures.error = str(error)
            return False

    def _do(self, errand: ThreadCall[SmallDiskTasks]) -> WorkFailed | None:
        """Do what another thread asks for; its failures are that thread's, and the store's."""
        error = errand.run(self._duties)
        event = self._fail(error) if isinstance(error, StoreError) else None
        errand.tell()  # who waits may ask what the store said last
        return event

    def _patience(self) -> float | None:
        """Seconds to wait before the next unit; None without work, 0.0 for none."""
        if self._errands.waiting:
            return 0.0
        at = self._failures.next_try if self._has_work else self._looks.next_at
        if self._standby and self._turn.wanted():
            return 0.0
        if at is None:
            return None
        longest = _LOCK_S if self._standby else _LONGEST_S
        return min(longest, max(0.0, at - time.monotonic()))

    def _work(self, *, asked: bool) -> Published | WorkFailed | None:
        """Do one unit, if `asked` to or if a file may be sent; return what is to be heard of."""
        started = time.monotonic()
        try:
            if not self._looks.look() and not asked:
                self._complain()
                return None
            with self.changed:
                self._sending = offer = self._offer
                self._offer = None
            done = self._unit(offer)
        except PublisherLockWantedError:
            self._give_up()
            return None
        except (CheckpointError, OSError) as error:
            return self._fail(error)
        for complaint in self._duties.complaints:
            self._say(WorkFailed(what="publishing", error=complaint))
        self._duties.complaints.clear()
        self._complain()
        with self.changed:
            self._failures.forget()
            self._has_work = self._has_work or done is not None
        return published(self._root, done.manifest, started) if done is not None else None

    def publish_now(self) -> bool:
        """Publish one checkpoint that waits; False if none does. Called inside an errand.

        Raises:
            StoreError: the store refused.
        """
        started = time.monotonic()
        done = self._duties.publish_next()
        if done is not None:
            self._say(published(self._root, done.manifest, started))
        return done is not None

    @property
    def _may_delete(self) -> bool:
        """A trainer may just be choosing what to resume from; its own worker is told of it."""
        return self._looks.gone or not self._standby

    def _unit(self, offer: EarlyUpload | None) -> LocalCheckpoint | None:
        """Publish one checkpoint, and delete what may go; return what was published."""
        self._turn.check()
        deletes = self._may_delete
        if deletes and self._standby:  # else the remover's thread does it
            self._duties.delete_local()
        if offer is not None:
            self._duties.send_ahead(offer)
        done = self._duties.publish_next()
        if done is None and self._duties.send_files(self._goes_on):
            self.wake()
        if deletes:
            self._duties.delete_stored()
        self._duties.delete_begun()
        return done

    def _goes_on(self) -> bool:
        """Whether files may be sent on: nothing else came that is worth more."""
        self._turn.check()
        with self.changed:
            return not self._has_work and not self._errands.waiting

    def _give_up(self) -> None:
        """Let the worker of a training process publish, until it is gone."""
        self._duties.hand_over()
        self._turn.give_up()
        with self.changed:
            self._failures.forget()
            self._failures.forgive()
            self._has_work = True

    def _complain(self) -> None:
        """Say which files cannot be sent."""
        for complaint in self._looks.complaints():
            self._say(WorkFailed(what="sending files", error=complaint, of_a_file=True))

    def _fail(self, error: Exception) -> WorkFailed | None:
        if not may_pass(error):
            self._duties.forget()
        with self.changed:
            self._failures.add(error)
            self._has_work = True
        return self._failures.tell(error)
