"""The worker process: its messages, its signals and its end. Imports neither torch nor lightning.

It lives as long as the training process, and after that until everything in the arenas is committed
and the outbox is empty, or its deadline is over. SIGINT is ignored (Ctrl-C reaches the whole
group). SIGTERM, which a platform sends to every process, means: hurry; the training process decides
what is still to be saved. The end of the pipe, also by SIGKILL of the trainer, means: drain, then
leave. Commits, removals and publishing each have a thread: a slow store holds up neither a commit
nor a removal, and none of them holds up a message.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.localdir.job_id_file import note_job
from bt_lightning.store.interface import redact
from bt_lightning.store.retry import LateStore, RetryingStore
from bt_lightning.worker.commit_lock import CommitLock
from bt_lightning.worker.commit_thread import CommitThread, Outcome
from bt_lightning.worker.commit_to_disk_or_store import ImageCommitter
from bt_lightning.worker.disk_removals import DiskRemovals
from bt_lightning.worker.free_disk_space import DiskSpaceMaker
from bt_lightning.worker.process_priority import lower_priority, stand_apart
from bt_lightning.worker.publish_job_files import JobFilePublisher
from bt_lightning.worker.publisher_lock import PublisherLock, stand_by
from bt_lightning.worker.publisher_tasks_small_disk import SmallDiskTasks
from bt_lightning.worker.publisher_thread import PublisherThread
from bt_lightning.worker.trainer_queries import TrainerQueries
from bt_lightning.worker_messages import (
    Begin,
    CheckStore,
    CommitImage,
    Drain,
    Drained,
    DropArena,
    Fetch,
    ListStore,
    MakeRoom,
    Published,
    ShareArena,
    Stop,
    Unwanted,
    Verify,
    Wake,
    Withdraw,
    WorkerConfig,
    WorkFailed,
)

if TYPE_CHECKING:
    from bt_lightning.worker.early_upload import EarlyUpload

_IDLE_S = 1.0
"""Longest wait without a look at whether the training process still lives."""
_GRACE_S = 5.0
EXIT_DEADLINE = 75
"""Exit code of a worker that a hanging store would have kept beyond its deadline."""
EXIT_BUG = 70
"""Exit code of a worker one of whose threads failed in a way that nothing here expects."""


def run_worker(conn: Connection, config: WorkerConfig) -> None:
    """Entry of the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a client may ask a program for its credentials
    stand_apart()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    lower_priority()
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="bt_lightning worker: %(message)s"
    )
    threading.excepthook = _die
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _Loop(conn, config).run()


def _die(failure: threading.ExceptHookArgs) -> None:
    """A thread that is gone would leave its work undone without a word."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    os._exit(EXIT_BUG)


class _Loop:
    def __init__(self, conn: Connection, config: WorkerConfig) -> None:
        self._conn = conn
        self._sending = threading.Lock()
        self._config = config
        parent = multiprocessing.parent_process()
        self._parent = parent.pid if parent is not None else os.getppid()
        self._root = Path(config.root)
        self._publisher: PublisherThread | None = None
        self._remover: DiskRemovals | None = None
        self._lock = CommitLock(self._root)
        note_job(self._root, config.prefix)
        self._stopped = False
        self._orphaned = False  # no one listens any more
        self._conn_ended = False  # as a thread found when it had something to say
        self._ends_at: float | None = None  # leave by then
        self._drain_by: float | None = None  # answer Drain by then
        self._progress = os.eventfd(0, os.EFD_NONBLOCK)  # a thread has come to something
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        self._deadline: threading.Timer | None = None
        signal.signal(signal.SIGTERM, lambda *_: None)  # wakes the loop
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._room = DiskSpaceMaker(
            self._root,
            config.budget,
            lambda: self._publisher,
            lambda: self._remover,
            has_store=config.store_url is not None,
        )
        self._answers = TrainerQueries(config, self._room)
        keeper = ImageCommitter(self._root, self._room, self._offered)
        self._committer = CommitThread(
            self._root, keeper, self._lock, self._committed, start=not config.standby
        )

    def run(self) -> None:
        threading.Thread(target=self._watch_trainer, daemon=True).start()
        while not self._finished():
            self._receive()
            self._answer_drain()
        if self._remover is not None and not self._config.standby:
            self._remover.leave()
        if self._publisher is not None:
            self._publisher.leave()

    # waiting and listening

    def _receive(self) -> None:
        sources: list[Connection | int] = [self._signals, self._progress]
        if not self._orphaned:
            sources.append(self._conn)
        for source in wait(sources, self._patience()):
            if source == self._signals:
                os.read(self._signals, 64)
                self._wake(hurry=True)
            elif source == self._progress:
                os.eventfd_read(self._progress)
            else:
                self._receive_message()
        if not self._orphaned and os.getppid() != self._parent and not self._conn.poll(0):
            self._orphan()  # read to its end, though a forked child may still hold the pipe open

    def _receive_message(self) -> None:
        try:
            message = self._conn.recv()
            if isinstance(message, ShareArena):
                self._committer.share(message.index, recv_handle(self._conn), message.size)
                return
        except (EOFError, OSError, RuntimeError):  # the last: a descriptor that did not follow
            self._orphan()
        else:
            self._handle(message)

    def _patience(self) -> float:
        """Seconds to wait for a message."""
        ends = [at for at in (self._ends_at, self._drain_by) if at is not None]
        return max(0.0, min([_IDLE_S, *(at - time.monotonic() for at in ends)]))

    def _orphan(self) -> None:
        self._orphaned = True
        self._committer.leave()
        self._leave_soon()
        self._wake(hurry=True)  # again, if it was to leave already: what is here now is all

    def _leave_soon(self) -> None:
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._config.drain_s
            self._end_by_deadline()
            self._wake(hurry=True)  # the last commit may have come before its wake

    def _end_by_deadline(self) -> None:
        """From now on this process has `drain_s` left, whatever a store's client does."""
        if self._deadline is None:
            seconds = self._config.drain_s + _GRACE_S
            self._deadline = threading.Timer(seconds, os._exit, [EXIT_DEADLINE])
            self._deadline.daemon = True
            self._deadline.start()

    def _watch_trainer(self) -> None:
        """A thread of its own: the loop may hang in a question to the store."""
        poll = select.poll()
        poll.register(self._conn.fileno(), 0)  # hang-up is always reported
        while not poll.poll(1000 * _IDLE_S) and os.getppid() == self._parent:
            pass
        self._end_by_deadline()

    def _finished(self) -> bool:
        if self._stopped:
            return self._committer.idle  # what was handed over is not lost by a hasty end
        if self._ends_at is None:
            return False
        publisher = self._publisher
        done = publisher is None or publisher.idle or publisher.permanent
        return (self._settled and done) or time.monotonic() >= self._ends_at

    @property
    def _settled(self) -> bool:
        """Whether nothing is left to do on the disk."""
        return self._committer.idle and (self._remover is None or self._remover.idle)

    def _say(self, message: object) -> None:
        if not self._orphaned and not self._conn_ended:
            try:
                with self._sending:
                    self._conn.send(message)
            except OSError:
                self._conn_ended = True  # the loop sees it as well

    # what the threads have come to; called by them

    def _committed(self, outcome: Outcome | Published | None) -> None:
        if outcome is not None:
            self._wake()
            self._say(outcome)
        os.eventfd_write(self._progress, 1)

    def _offered(self, offer: EarlyUpload) -> None:
        if self._publisher is not None:
            self._publisher.offer(offer)

    def _published(self, event: Published | WorkFailed | None) -> None:
        if event is not None:
            self._say(event)
        os.eventfd_write(self._progress, 1)

    # messages

    def _handle(self, message: object) -> None:
        match message:
            case CheckStore() | ListStore() | Fetch() | Verify() | MakeRoom():
                self._say(self._answers.answer(message))
            case Begin(pinned):
                self._begin(pinned)
            case CommitImage():
                self._committer.put(message)
            case Withdraw(number):
                self._committer.withdraw(number)
            case Unwanted(number):
                self._committer.unwanted(number)
                self._wake()
            case DropArena(index):
                self._committer.drop(index)
            case Wake():
                self._wake()
            case Drain(deadline_s):
                self._drain_by = time.monotonic() + deadline_s
                self._wake(hurry=True)
            case Stop():
                self._stopped = True
                self._end_by_deadline()
            case _:
                msg = f"the worker got {message!r}, which it does not know"
                raise TypeError(msg)

    def _begin(self, pinned: frozenset[str]) -> None:
        """From now on delete and publish."""
        url, standby = self._config.store_url, self._config.standby
        self._remover = DiskRemovals(
            self._root, pinned, self._lock, lambda: self._published(None), start=not standby
        )
        turn = PublisherLock(self._root, standby=standby)
        if standby and url:
            stand_by(self._root, url, self._config.prefix)
        duties = SmallDiskTasks(
            self._root,
            RetryingStore(LateStore(self._answers.open)) if url else None,
            self._config.prefix,
            pinned,
            check=turn.check,
            files=self._files() if url else None,
            remover=self._remover,
        )
        self._publisher = PublisherThread(
            self._root, duties, turn, self._published, standby=standby
        )

    def _wake(self, *, hurry: bool = False) -> None:
        if self._remover is not None:
            self._remover.wake()
        if self._publisher is not None:
            if hurry:
                self._publisher.hurry(gone=self._orphaned or self._config.standby)
            else:
                self._publisher.wake()

    def _files(self) -> JobFilePublisher | None:
        patterns = self._config.files
        place = f"{redact(self._config.store_url or '')}\n{self._config.prefix}"
        return JobFilePublisher(self._root, patterns, place) if patterns is not None else None

    def _answer_drain(self) -> None:
        if self._drain_by is None:
            return
        publisher = self._publisher
        over = time.monotonic() >= self._drain_by
        if not over and not self._settled:
            return
        waiting: tuple[str, ...] = ()
        reason = None
        if publisher is not None:
            others = not publisher.owns and not self._config.store_url
            if not (over or publisher.idle or publisher.permanent or others):
                return
            waiting, reason = publisher.waiting(), publisher.reason
            if reason is None and not publisher.owns:
                reason = "another worker holds the directory"
            elif reason is None and waiting:
                reason = f"{redact(self._config.store_url or '')} has not answered yet"
            if self._ends_at is None:
                publisher.go_on()
        self._drain_by = None
        self._say(Drained(waiting=waiting, reason=reason))
