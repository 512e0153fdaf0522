"""The worker process: its loop, its signals and its end. Imports neither torch nor lightning.

It lives as long as the training process, and after that until the outbox is empty or its deadline
is over, whichever comes first. SIGINT is ignored (Ctrl-C reaches the whole group); SIGTERM and the
end of the pipe, also by SIGKILL of the trainer, both mean: drain, then leave.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import select
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointError,
    StoreError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.layout import DOT_DIR, check_checkpoint_id
from bt_lightning.localdir.durable import try_lock
from bt_lightning.messages import (
    Answer,
    Begin,
    CheckStore,
    Drain,
    Drained,
    Fetch,
    ListStore,
    Published,
    Stop,
    StoredCheckpoint,
    Wake,
    WorkerConfig,
    WorkFailed,
)
from bt_lightning.store.catalog import fetch, look
from bt_lightning.store.remote import open_store
from bt_lightning.store.retry import LateStore, RetryingStore, backoff
from bt_lightning.worker.duties import Duties

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.store.port import Store

log = logging.getLogger(__name__)

_IDLE_S = 1.0
"""Longest wait without a look at whether the training process still lives."""
_LOCK_S = 0.1
_RETRY_PERMANENT_S = 60.0
_GRACE_S = 5.0
_NICE = 10
EXIT_DEADLINE = 75
"""Exit code of a worker that a hanging store would have kept beyond its deadline."""


def run(conn: Connection, config: WorkerConfig) -> None:
    """Entry of the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="bt_lightning worker: %(message)s"
    )
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _Loop(conn, config).run()


class _Loop:
    def __init__(self, conn: Connection, config: WorkerConfig) -> None:
        self._conn = conn
        self._config = config
        parent = multiprocessing.parent_process()
        self._parent = parent.pid if parent is not None else os.getppid()
        self._root = Path(config.root)
        self._store: Store | None = None
        self._duties: Duties | None = None
        self._lock: int | None = None
        self._orphaned = False  # no one listens any more
        self._ends_at: float | None = None  # leave by then
        self._drain_by: float | None = None  # answer Drain by then
        self._failures = 0
        self._next_try = 0.0
        self._has_work = True
        self._reported: str | None = None
        self._last_error: str | None = None
        self._permanent = False
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        self._deadline: threading.Timer | None = None
        signal.signal(signal.SIGTERM, lambda *_: self._end_by_deadline())  # and wakes the loop
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def run(self) -> None:
        threading.Thread(target=self._watch_trainer, daemon=True).start()
        while not self._finished():
            self._receive()
            self._work()
            self._answer_drain()

    # waiting and listening

    def _receive(self) -> None:
        sources: list[Connection | int] = [self._signals]
        if not self._orphaned:
            sources.append(self._conn)
        for source in wait(sources, self._patience()):
            if source == self._signals:
                os.read(self._signals, 64)
                self._leave_soon()
                continue
            try:
                message = self._conn.recv()
            except (EOFError, OSError):
                self._orphan()
            else:
                self._handle(message)
        if not self._orphaned and os.getppid() != self._parent and not self._conn.poll(0):
            self._orphan()  # read to its end, though a forked child may still hold the pipe open

    def _patience(self) -> float:
        """Seconds to wait for a message: none while there is work that may be done now."""
        now = time.monotonic()
        if self._duties is None:
            return _IDLE_S
        if self._lock is None:
            return _LOCK_S
        if not self._has_work:
            return _IDLE_S
        return max(0.0, min(_IDLE_S, self._next_try - now))

    def _orphan(self) -> None:
        self._orphaned = True
        self._leave_soon()

    def _leave_soon(self) -> None:
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._config.drain_s
            self._end_by_deadline()
            self._has_work = True  # the last commit may have come before its wake
            self._next_try = 0.0

    def _end_by_deadline(self) -> None:
        """From now on this process has `drain_s` left, whatever a store's client does."""
        if self._deadline is None:
            seconds = self._config.drain_s + _GRACE_S
            self._deadline = threading.Timer(seconds, os._exit, [EXIT_DEADLINE])
            self._deadline.daemon = True
            self._deadline.start()

    def _watch_trainer(self) -> None:
        """A thread of its own: the loop may hang in a call to the store when the trainer dies."""
        poll = select.poll()
        poll.register(self._conn.fileno(), 0)  # hang-up is always reported
        while not poll.poll(1000 * _IDLE_S) and os.getppid() == self._parent:
            pass
        self._end_by_deadline()

    def _finished(self) -> bool:
        if self._ends_at is None:
            return False
        idle = self._duties is None or not self._has_work or self._permanent
        return idle or time.monotonic() >= self._ends_at

    def _say(self, message: object) -> None:
        if not self._orphaned:
            try:
                self._conn.send(message)
            except OSError:
                self._orphan()

    # messages

    def _handle(self, message: object) -> None:
        match message:
            case CheckStore():
                self._answer(self._check_store)
            case ListStore():
                self._answer(self._list_store)
            case Fetch(folder, target):
                self._answer(lambda: self._fetch(folder, target))
            case Begin(pinned):
                store = RetryingStore(LateStore(self._open)) if self._config.store_url else None
                self._duties = Duties(self._root, store, self._config.prefix, pinned)
            case Wake():
                self._has_work = True
                if self._permanent:
                    self._next_try = 0.0
            case Drain(deadline_s):
                self._drain_by = time.monotonic() + deadline_s
                self._has_work = True
                self._next_try = 0.0
            case Stop():
                self._ends_at = time.monotonic()
                self._has_work = False
            case _:
                msg = f"the worker got {message!r}, which it does not know"
                raise TypeError(msg)

    def _answer(self, work: Callable[[], object]) -> None:
        try:
            self._say(Answer(work()))
        except (CheckpointError, OSError) as error:
            self._say(Answer(None, error))

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._config.store_url or "", self._config.storage_options)
        return self._store

    def _check_store(self) -> None:
        """Write, read and delete: what every publish will need."""
        store = RetryingStore(self._open(), tries=2)
        key = f"{self._config.prefix}/{DOT_DIR}-probe"  # one name: a killed check leaves no trail
        try:
            store.put_new(key, b"probe")
            if store.read(key) != b"probe":
                msg = f"{store.name} does not give back what was written to it"
                raise StorePermanentError(msg)
        finally:
            with contextlib.suppress(StoreError):
                store.delete([key])

    def _list_store(self) -> list[StoredCheckpoint]:
        listing = look(RetryingStore(self._open()), self._config.prefix)
        return [
            StoredCheckpoint(folder=folder, manifest=data)
            for folder, data in listing.committed.items()
        ]

    def _fetch(self, folder: str, target: str) -> str:
        final = self._root / check_checkpoint_id(target)
        fetch(RetryingStore(self._open()), self._config.prefix, folder, self._root, final)
        return str(final)

    # work

    def _work(self) -> None:
        if self._duties is None or not self._has_work or time.monotonic() < self._next_try:
            return
        if not self._own():
            return
        started = time.monotonic()
        try:
            self._duties.delete_local()  # first: a store that is down must not fill the disk
            done = self._duties.publish_next()
            self._duties.delete_stored()
            self._has_work = done is not None
        except (CheckpointError, OSError) as error:
            self._fail(error)
            return
        for complaint in self._duties.complaints:
            self._say(WorkFailed(what="publishing", error=complaint))
        self._duties.complaints.clear()
        self._failures = 0
        self._permanent = False
        self._last_error = self._reported = None
        if done is not None:
            manifest = done.manifest
            self._say(
                Published(
                    checkpoint_id=manifest.checkpoint_id,
                    digest=manifest.digest,
                    size=manifest.size,
                    seconds=time.monotonic() - started,
                )
            )

    def _fail(self, error: Exception) -> None:
        assert self._duties is not None
        self._duties.forget()
        self._last_error = str(error)
        self._permanent = not isinstance(error, StoreTransientError)
        self._failures += 1
        wait_s = _RETRY_PERMANENT_S if self._permanent else backoff(self._failures, random.random())
        self._next_try = time.monotonic() + wait_s
        if not self._permanent:
            log.log(
                logging.WARNING if self._failures == 1 else logging.DEBUG,
                "the store failed, trying again: failures=%d error=%s",
                self._failures,
                error,
            )
        elif self._reported is None:  # the text names a key, so each checkpoint has another
            self._reported = self._last_error
            self._say(WorkFailed(what="publishing", error=self._last_error))

    def _own(self) -> bool:
        """Hold the directory's only right to publish; an earlier run's worker may still drain."""
        if self._lock is None:
            path = self._root / DOT_DIR / "worker.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if not try_lock(descriptor):
                os.close(descriptor)
                return False
            self._lock = descriptor
        return True

    def _answer_drain(self) -> None:
        if self._drain_by is None:
            return
        idle = not self._has_work or (self._lock is None and not self._config.store_url)
        over = idle or self._permanent or time.monotonic() >= self._drain_by
        if not over and self._duties is not None:
            return
        waiting = self._duties.outbox() if self._duties is not None else []
        self._drain_by = None
        self._say(
            Drained(
                waiting=tuple(found.manifest.checkpoint_id for found in waiting),
                reason=self._last_error
                or (None if self._lock is not None else "another worker holds the directory"),
            )
        )
