"""The worker's thread that publishes and deletes, one unit of work at a time, and retries."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.errors import CheckpointError, StoreError
from bt_lightning.localdir.disk_errors import may_pass
from bt_lightning.worker.calls_between_threads import START_TIMEOUT_S, ThreadCalls
from bt_lightning.worker.disk_polling import DiskPolling
from bt_lightning.worker.log_thread import LogThread
from bt_lightning.worker.publish_report import published_event
from bt_lightning.worker.publish_retries import PublishRetries
from bt_lightning.worker.publisher_lock import PublisherLockWantedError
from bt_lightning.worker_messages import WorkFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.worker.calls_between_threads import ThreadCall
    from bt_lightning.worker.early_upload import EarlyUpload
    from bt_lightning.worker.publisher_lock import PublisherLock
    from bt_lightning.worker.publisher_tasks_parts import ShardedTasks
    from bt_lightning.worker_messages import Published

T = TypeVar("T")
_LOCK_POLL_S = 0.1
_MAX_WAIT_S = 60.0
_LEAVE_TIMEOUT_S = 2.0
_ORPHAN_TIMEOUT_S = 10.0
"""Seconds that a worker without a training process waits for another worker's lock."""


class PublisherThread:
    """The thread that carries out the tasks of one directory.

    `report` sends an event to the training process; None means that `idle` may have changed.

    Every attribute is guarded by `changed`, which is notified when any of them changes.
    """

    def __init__(
        self,
        root: Path,
        tasks: ShardedTasks,
        publisher_lock: PublisherLock,
        report: Callable[[Published | WorkFailed | None], None],
        *,
        standby: bool = False,
    ) -> None:
        self.changed = threading.Condition()
        self._root = root
        self._tasks = tasks
        self._report = report
        self._publisher_lock = publisher_lock
        self._standby = standby
        self._polling = DiskPolling(tasks.files, standby=standby)
        self._offered: EarlyUpload | None = None
        self._sending: EarlyUpload | None = None
        self._calls: ThreadCalls[ShardedTasks] = ThreadCalls(self.changed)
        self._retries = PublishRetries(root)
        self._has_work = True
        self._working = False
        self._left = False
        with contextlib.suppress(OSError):  # the disk is full, or gone
            tasks.prepare()
        self._thread = threading.Thread(target=self._run, daemon=True, name="bt_lightning publish")
        self._thread.start()
        logs = tasks.logs
        self._logs = LogThread(logs, lambda: self.owns, self._report_logs) if logs else None

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do. Called when a training ends: the last lines are sent."""
        with self.changed:
            if self._has_work or self._working or self._polling.unsettled:
                return False
        return self._logs is None or self._logs.settled

    @property
    def owns(self) -> bool:
        """Whether this worker, and no earlier run's, publishes from the directory."""
        return self._publisher_lock.held

    @property
    def tasks(self) -> ShardedTasks:
        """What it carries out; other threads only look at it."""
        return self._tasks

    @property
    def failures(self) -> int:
        """Number of units that failed, in all."""
        return self._retries.total

    def waiting(self) -> tuple[str, ...]:
        """Ids of checkpoints, then paths of job files, that are not in the store yet."""
        try:
            ids = tuple(found.manifest.checkpoint_id for found in self._tasks.outbox())
        except OSError as error:
            ids = (f"what lies on the disk, which cannot be read ({error})",)
        return ids + self._polling.waiting

    @property
    def reason(self) -> str | None:
        """The error that keeps something out of the store; None if there is none."""
        return self._retries.error or self._polling.reason

    @property
    def permanent(self) -> bool:
        """Whether the last try failed in a way that another try will not cure."""
        return self._retries.permanent

    def wake(self) -> None:
        """Tell the thread that the disk changed."""
        with self.changed:
            self._has_work = True
            if self.permanent:
                self._retries.next_try = 0.0
            self.changed.notify_all()

    def offer(self, upload: EarlyUpload) -> None:
        """Offer files of a checkpoint that is being committed; ignored while there is other work.

        Called by the commit thread and its hashers; never waits.
        """
        with self.changed:
            if self._retries.count or (self._working and self._sending is not upload):
                return
            self._offered = upload
            self._has_work = True
            self.changed.notify_all()

    def newest(self, checkpoint_id: str) -> Manifest | None:
        """The newest generation of an id that the store is known to hold; None if none is."""
        return self._tasks.newest(checkpoint_id)

    @property
    def refusal(self) -> str | None:
        """The store's last error, if it is so fresh that asking again is pointless; else None."""
        with self.changed:
            return self._retries.refusal

    def perform(self, function: Callable[[ShardedTasks], T]) -> T:
        """Call `function` on the publisher thread before its next unit; return its result.

        Called by other threads of the worker, which wait.

        Raises:
            StoreTransientError: the unit under way does not end, or the worker is ending.
            CheckpointError, OSError: what `function` raised.
        """
        # The next run's worker may hold the lock while its commits wait for this worker's.
        orphaned = self._polling.trainer_gone and not self._publisher_lock.held
        return self._calls.wait(function, _ORPHAN_TIMEOUT_S if orphaned else START_TIMEOUT_S)

    def hurry(self, *, gone: bool) -> None:
        """Scan and retry at once, as a training process ends, or is gone.

        A standby worker is told only when it is gone.
        """
        with self.changed:
            self._polling.end(gone=gone)
            self._has_work = True
            self._retries.retry_now()
            self.changed.notify_all()
        if self._logs is not None:
            self._logs.hurry()

    def cancel_hurry(self) -> None:
        """Cancel `hurry`: the training goes on, or another training process may come."""
        with self.changed:
            self._polling.cancel_end()
        if self._logs is not None:
            self._logs.go_on()

    def leave(self) -> None:
        """Let other processes publish; the thread does nothing more.

        Waits for a unit under way, at most 2 s: the store may hang.
        """
        if self._logs is not None:
            self._logs.leave()
        with self.changed:
            self._left = True
            self._calls.close()
            idle = self.changed.wait_for(lambda: not self._working, _LEAVE_TIMEOUT_S)
            if idle and self._publisher_lock.held:
                if self._standby and self._may_delete:
                    with contextlib.suppress(OSError):  # the next start tries again
                        self._tasks.delete_local()
                self._tasks.leave()
                self._publisher_lock.release()  # this process may hold an image for a while

    def _run(self) -> None:
        while True:
            with self.changed:
                while (wait_s := self._wait_s()) != 0.0:
                    self.changed.wait(wait_s)
                if self._left:
                    return
                if not self._acquire_lock():
                    self.changed.wait(_LOCK_POLL_S)
                    continue
                call = self._calls.take()
                asked = self._has_work or self._standby
                if call is None:
                    self._has_work = False  # a wake during the unit asks for another
                self._working = True
            event = self._run_unit(asked=asked) if call is None else self._run_call(call)
            if event is not None:
                self._report(event)  # before `idle`: a drain is answered then
            with self.changed:
                self._polling.schedule()
                self._working = False
                self.changed.notify_all()
            self._report(None)

    def _acquire_lock(self) -> bool:
        try:
            return self._publisher_lock.acquire()
        except OSError as error:  # the disk fails
            self._retries.error = str(error)
            return False

    def _run_call(self, call: ThreadCall[ShardedTasks]) -> WorkFailed | None:
        """Run a call of another thread, which gets the error; a `StoreError` also counts here."""
        error = call.run(self._tasks)
        event = self._note_failure(error) if isinstance(error, StoreError) else None
        call.deliver()  # last: the caller may read `refusal`
        return event

    def _wait_s(self) -> float | None:
        """Seconds to wait before the next unit; None if there is no work."""
        if self._calls.waiting:
            return 0.0
        at = self._retries.next_try if self._has_work else self._polling.next_at
        if self._standby and self._publisher_lock.wanted():
            return 0.0
        if at is None:
            return None
        longest = _LOCK_POLL_S if self._standby else _MAX_WAIT_S
        return min(longest, max(0.0, at - time.monotonic()))

    def _run_unit(self, *, asked: bool) -> Published | WorkFailed | None:
        """Do one unit, if `asked` to or if a file may be sent; return its event, if any."""
        started = time.monotonic()
        try:
            if not self._polling.scan() and not asked:
                self._report_complaints()
                return None
            with self.changed:
                self._sending = upload = self._offered
                self._offered = None
            done = self._do_unit(upload)
        except PublisherLockWantedError:
            self._yield_lock()
            return None
        except (CheckpointError, OSError) as error:
            return self._note_failure(error)
        for complaint in self._tasks.complaints:
            self._report(WorkFailed(what="publishing", error=complaint))
        self._tasks.complaints.clear()
        self._report_complaints()
        with self.changed:
            self._retries.reset()
            self._has_work = self._has_work or done is not None
        return published_event(self._root, done.manifest, started) if done is not None else None

    def publish_now(self) -> bool:
        """Publish one waiting checkpoint; False if none waits. Called inside `perform`.

        Raises:
            StoreError: the store refused.
        """
        started = time.monotonic()
        done = self._tasks.publish_next()
        if done is not None:
            self._report(published_event(self._root, done.manifest, started))
        return done is not None

    @property
    def _may_delete(self) -> bool:
        """Whether to delete: not in standby, while a trainer may be choosing a checkpoint."""
        return self._polling.trainer_gone or not self._standby

    def _do_unit(self, upload: EarlyUpload | None) -> LocalCheckpoint | None:
        """Publish one checkpoint, and delete what may be deleted; return what was published."""
        self._publisher_lock.check()
        deletes = self._may_delete
        if deletes and self._standby:  # else the removals thread does it
            self._tasks.delete_local()
        if upload is not None:
            self._tasks.send_ahead(upload)
        done = self._tasks.publish_next()
        if done is None and self._tasks.send_files(self._may_go_on):
            self.wake()
        self._tasks.delete_stored(only_foreign=not deletes)
        self._tasks.delete_begun()
        return done

    def _may_go_on(self) -> bool:
        """Whether to go on with job files: no more urgent work has come."""
        self._publisher_lock.check()
        with self.changed:
            return not self._has_work and not self._calls.waiting

    def _yield_lock(self) -> None:
        """Let the worker of a training process publish, until that has ended."""
        self._tasks.hand_over()
        self._publisher_lock.release()
        with self.changed:
            self._retries.reset()
            self._retries.retry_now()
            self._has_work = True

    def _report_logs(self, why: str | None) -> None:
        if why is not None and self._retries.error is None:  # else the checkpoints' own says it
            self._report(WorkFailed(what="sending logs", error=why, of_a_file=True))
        elif why is None:
            self._report(None)

    def _report_complaints(self) -> None:
        """Report the job files that cannot be sent."""
        for complaint in self._polling.complaints():
            self._report(WorkFailed(what="sending files", error=complaint, of_a_file=True))

    def _note_failure(self, error: Exception) -> WorkFailed | None:
        if not may_pass(error):
            self._tasks.forget()
        with self.changed:
            self._retries.add(error)
            self._has_work = True
        return self._retries.report(error)
