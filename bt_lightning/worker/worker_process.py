"""The worker process: its messages, its signals and its end. Imports neither torch nor lightning.

It lives as long as the training process, and then until everything in the arenas is committed and
the outbox is empty, or its deadline is over. It ignores SIGINT, as Ctrl-C reaches the whole group.
SIGTERM, which a platform sends to every process, makes it hurry; the training process decides what
is still saved. The end of the pipe, also by SIGKILL of the trainer, makes it drain and then end.
Commits, removals and publishing each have a thread: a slow store delays neither a commit nor a
removal, and none of them delays a message.
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

from bt_lightning.localdir.event_log import append
from bt_lightning.localdir.job_id_file import note_job
from bt_lightning.log_kinds import METRICS
from bt_lightning.part_messages import AwaitParts, MissPart, PartDurable
from bt_lightning.store.interface import redact
from bt_lightning.worker.commit_lock import CommitLock
from bt_lightning.worker.commit_thread import CommitThread, Outcome
from bt_lightning.worker.commit_to_disk_or_store import ImageCommitter
from bt_lightning.worker.disk_removals import DiskRemovals
from bt_lightning.worker.free_disk_space import DiskSpaceMaker
from bt_lightning.worker.part_commits import PartCommits
from bt_lightning.worker.process_priority import leave_session, lower_priority
from bt_lightning.worker.publisher_of_config import start_publisher
from bt_lightning.worker.removals_of_saves import RemovalsOfSaves
from bt_lightning.worker.trainer_queries import Question, TrainerQueries
from bt_lightning.worker_messages import (
    Begin,
    CommitImage,
    Drain,
    Drained,
    DropArena,
    LogMetrics,
    Published,
    RemoveSave,
    ShareArena,
    Stop,
    Wake,
    Withdraw,
    WorkerConfig,
    WorkFailed,
)

if TYPE_CHECKING:
    from bt_lightning.worker.early_upload import EarlyUpload
    from bt_lightning.worker.metrics_thread import MetricsThread
    from bt_lightning.worker.publisher_thread import PublisherThread

_IDLE_S = 1.0
"""Seconds between two checks whether the training process still lives."""
_GRACE_S = 5.0
EXIT_DEADLINE = 75
"""Exit code of a worker that a hanging store kept beyond its deadline."""
EXIT_BUG = 70
"""Exit code of a worker one of whose threads raised an unexpected error."""


def run_worker(conn: Connection, config: WorkerConfig) -> None:
    """Entry point of the child process; returns when the worker is to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a store may run a program for credentials
    leave_session()
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
    """End the process with a traceback: a thread that just ended would leave its work undone."""
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
        self._removals: DiskRemovals | None = None
        self._metrics: MetricsThread | None = None
        self._commit_lock = CommitLock(self._root)
        self._stopping = False
        self._orphaned = False  # the training process is gone
        self._conn_ended = False  # a thread failed to send
        self._ends_at: float | None = None  # end the process by then
        self._drain_by: float | None = None  # answer Drain by then
        self._progress = os.eventfd(0, os.EFD_NONBLOCK)  # a thread made progress
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        self._deadline: threading.Timer | None = None
        signal.signal(signal.SIGTERM, lambda *_: None)  # wakes the loop
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._space_maker = DiskSpaceMaker(
            self._root,
            config.budget,
            lambda: self._publisher,
            lambda: self._removals,
            has_store=config.store_url is not None,
        )
        self._queries = TrainerQueries(config, self._space_maker)
        self._unwanted = RemovalsOfSaves(self._root)
        parts = PartCommits(
            config, self._space_maker, self._unwanted, self._on_outcome, self._queries.open
        )
        self._gathers, self._helped = parts.gathers, parts.helped
        self._committer = CommitThread(
            config,
            ImageCommitter(self._root, self._space_maker, self._on_early_upload),
            parts.writer,
            self._commit_lock,
            self._on_outcome,
        )

    def run(self) -> None:
        threading.Thread(target=self._watch_trainer, daemon=True).start()
        while not self._finished():
            self._receive()
            self._answer_drain()
        if self._removals is not None and not self._config.standby:
            self._removals.leave()
        if self._metrics is not None:
            self._metrics.leave()  # while this worker still owns the directory
        if self._publisher is not None:
            self._publisher.leave()
        self._committer.hold(self._deadline)

    # the main loop: receive messages, and end

    def _receive(self) -> None:
        sources: list[Connection | int] = [self._signals, self._progress]
        if not self._orphaned:
            sources.append(self._conn)
        for source in wait(sources, self._wait_s()):
            if source == self._signals:
                os.read(self._signals, 64)
                self._committer.hurry()
                self._wake(hurry=True)
            elif source == self._progress:
                os.eventfd_read(self._progress)
            else:
                self._receive_message()
        if not self._orphaned and os.getppid() != self._parent and not self._conn.poll(0):
            self._orphan()  # all is read, though a forked child may hold the pipe open

    def _receive_message(self) -> None:
        try:
            message = self._conn.recv()
            if isinstance(message, ShareArena):
                self._committer.share(message.index, recv_handle(self._conn), message.size)
                return
        except (EOFError, OSError, RuntimeError):  # RuntimeError: no descriptor followed
            self._orphan()
        else:
            self._handle(message)

    def _wait_s(self) -> float:
        """Seconds to wait for a message."""
        ends = [at for at in (self._ends_at, self._drain_by) if at is not None]
        return max(0.0, min([_IDLE_S, *(at - time.monotonic() for at in ends)]))

    def _orphan(self) -> None:
        self._orphaned = True
        self._committer.leave()
        self._leave_soon()
        self._wake(hurry=True)  # also if it was to end already: nothing more will come

    def _leave_soon(self) -> None:
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._config.drain_s
            self._arm_deadline()
            self._wake(hurry=True)  # the last commit may precede its wake

    def _arm_deadline(self) -> None:
        """End the process in `drain_s` seconds, even if a store's client hangs."""
        if self._deadline is None:
            seconds = self._config.drain_s + _GRACE_S
            self._deadline = threading.Timer(seconds, os._exit, [EXIT_DEADLINE])
            self._deadline.daemon = True
            self._deadline.start()

    def _watch_trainer(self) -> None:
        """Arm the deadline when the trainer is gone; a thread, as the loop may hang in a query."""
        poll = select.poll()
        poll.register(self._conn.fileno(), 0)  # hang-up is always reported
        while not poll.poll(1000 * _IDLE_S) and os.getppid() == self._parent:
            pass
        self._arm_deadline()

    def _finished(self) -> bool:
        if self._stopping:
            return self._commits_idle  # images that were handed over are committed first
        if self._ends_at is None:
            return False
        publisher = self._publisher
        done = publisher is None or publisher.idle or publisher.permanent
        return (self._disk_idle and done) or time.monotonic() >= self._ends_at

    @property
    def _disk_idle(self) -> bool:
        """Whether all commits and removals are done."""
        return self._commits_idle and (self._removals is None or self._removals.idle)

    @property
    def _commits_idle(self) -> bool:
        return self._committer.idle and self._gathers.idle

    def _send(self, message: object) -> None:
        if not self._orphaned and not self._conn_ended:
            try:
                with self._sending:
                    self._conn.send(message)
            except OSError:
                self._conn_ended = True  # the loop notices it as well

    # reports of the threads; called by them

    def _on_outcome(self, outcome: Outcome | PartDurable | Published | None) -> None:
        if outcome is not None:
            self._wake()
            self._send(outcome)
        os.eventfd_write(self._progress, 1)

    def _on_early_upload(self, upload: EarlyUpload) -> None:
        if self._publisher is not None:
            self._publisher.offer(upload)

    def _on_published(self, event: Published | WorkFailed | None) -> None:
        if event is not None:
            self._send(event)
        os.eventfd_write(self._progress, 1)

    # handling of messages

    def _handle(self, message: object) -> None:
        if isinstance(message, Question):
            self._send(self._queries.answer(message))
            return
        match message:
            case Begin(pinned):
                self._begin(pinned)
            case CommitImage() | MissPart() | AwaitParts():
                self._committer.put(message)
            case Withdraw(number):
                self._committer.withdraw(number)
            case RemoveSave(number):
                under_way = self._committer.has(number) or self._gathers.has(number)
                self._unwanted.ask(number, under_way=under_way)
                self._wake()
            case DropArena(index):
                self._committer.drop(index)
            case Wake():
                self._wake()
            case LogMetrics(lines):
                with contextlib.suppress(OSError):  # a lost row does no harm
                    append(self._root, lines, METRICS)
            case Drain(deadline_s, parts):
                self._drain_by = time.monotonic() + deadline_s
                self._gathers.hurry(parts=parts)
                self._wake(hurry=True)
            case Stop():
                self._stopping = True
                self._arm_deadline()
            case _:
                msg = f"the worker got {message!r}, an unknown message"
                raise TypeError(msg)

    def _begin(self, pinned: frozenset[str]) -> None:
        """Start to delete and publish: the worker of rank 0 does."""
        if not self._config.leads:
            return
        note_job(self._root, self._config.prefix)
        self._removals = DiskRemovals(
            self._root,
            pinned,
            self._commit_lock,
            lambda: self._on_published(None),
            policy=self._config.policy,
            start=not self._config.standby,
        )
        self._publisher = start_publisher(
            self._config,
            self._queries.open,
            self._removals,
            self._helped,
            self._on_published,
        )
        if self._config.metrics:
            from bt_lightning.worker.metrics_thread import MetricsThread

            self._metrics = MetricsThread(self._config, self._publisher, lambda: self._orphaned)

    def _wake(self, *, hurry: bool = False) -> None:
        if self._removals is not None:
            self._removals.wake()
        if self._publisher is not None:
            if hurry:
                self._publisher.hurry(gone=self._orphaned or self._config.standby)
            else:
                self._publisher.wake()

    def _answer_drain(self) -> None:
        if self._drain_by is None:
            return
        publisher = self._publisher
        late = time.monotonic() >= self._drain_by
        if not late and not self._disk_idle:
            return
        waiting: tuple[str, ...] = ()
        reason = None
        if publisher is not None:
            disk_only = not publisher.owns and not self._config.store_url
            if not (late or publisher.idle or publisher.permanent or disk_only):
                return
            waiting, reason = publisher.waiting(), publisher.reason
            if reason is None and not publisher.owns:
                reason = "another worker holds the directory"
            elif reason is None and waiting:
                reason = f"{redact(self._config.store_url or '')} has not answered yet"
            if self._ends_at is None:
                publisher.cancel_hurry()
        self._drain_by = None
        self._send(Drained(waiting=waiting, reason=reason))
