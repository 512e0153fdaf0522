"""The training process's handle of its worker: start, commit, ask, poll, drain, stop."""

from __future__ import annotations

import contextlib
import math
import select
import threading
import time
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import StoreTransientError, WorkerDiedError
from bt_lightning.part_messages import PartDurable
from bt_lightning.worker.child_exit import collect_exit, exit_code, is_over
from bt_lightning.worker.drain_report import drain_report
from bt_lightning.worker.restart_limit import RestartLimit
from bt_lightning.worker.spawn import frozen_advice, spawn
from bt_lightning.worker.unfinished_saves import UnfinishedSaves
from bt_lightning.worker_messages import (
    Answer,
    Begin,
    CommitFailed,
    Committed,
    Drain,
    Drained,
    DropArena,
    Published,
    RemoveSave,
    ShareArena,
    Stop,
    Wake,
    Withdraw,
    Withdrawn,
    WorkerConfig,
    WorkFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from bt_lightning.worker.unfinished_saves import SaveMessage
    from bt_lightning.worker_messages import LogMetrics

Outcome = Committed | CommitFailed | Withdrawn
Event = Published | WorkFailed | PartDurable | Outcome
_EXIT_S = 10.0
_LATE_S = 0.5
"""Seconds between two checks of the time left; an answer may come so much later."""


def unlimited() -> float:
    """Seconds left where nobody set a limit."""
    return math.inf


class Worker:
    """One worker process, as seen by the rank that writes. Not shared between processes.

    One thread receives (`ask`, `poll`, `await_event`, `drain`, `stop`); `share`, `drop` and
    `commit` may be called by another one beside it.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._process: SpawnProcess | None = None
        self._conn: Connection | None = None
        self._restarts = RestartLimit(Path(config.root))
        self._begin: Begin | None = None
        self.awaits_parts = True
        """Whether a drain waits for parts of other ranks that nobody is known to write."""
        self._events: list[Event] = []
        self._lock = threading.RLock()
        self._readable = select.poll()
        self._arenas: dict[int, tuple[int, int]] = {}
        self._unfinished = UnfinishedSaves()

    def start(self) -> None:
        """Spawn the process; works from scripts without a main guard, stdin and notebooks."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        self._process, self._conn = spawn(self._config)
        self._readable = select.poll()
        self._readable.register(self._conn.fileno(), select.POLLIN)
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):  # the next poll sees it, and restarts
                self._resend()

    def _resend(self) -> None:
        """Send a new process what an earlier one had been sent."""
        for index, (descriptor, size) in self._arenas.items():
            self._send_arena(index, descriptor, size)
        if self._begin is not None:  # first: a commit may need room
            self._conn.send(self._begin)  # type: ignore[union-attr]  # start() sets it
        for job in self._unfinished:
            self._conn.send(job)  # type: ignore[union-attr]

    def _send_arena(self, index: int, descriptor: int, size: int) -> None:
        assert self._conn is not None
        assert self._process is not None
        assert self._process.pid is not None
        self._conn.send(ShareArena(index, size))
        send_handle(self._conn, descriptor, self._process.pid)

    def share(self, index: int, descriptor: int, size: int) -> None:
        """Let the worker map an arena of `size` bytes; keep `descriptor` open until `drop`."""
        with self._lock:
            self._arenas[index] = (descriptor, size)
            with contextlib.suppress(OSError):  # the next poll restarts, and resends
                if self._conn is not None:
                    self._send_arena(index, descriptor, size)

    def drop(self, index: int) -> None:
        """Let the worker forget an arena that no open commit uses."""
        with self._lock:
            del self._arenas[index]
            with contextlib.suppress(OSError):
                if self._conn is not None:
                    self._conn.send(DropArena(index))

    def commit(self, job: SaveMessage) -> None:
        """Let the worker commit a complete image; its outcome comes as an event, once.

        If the worker dies before, the next one commits it. Never waits for the disk. The other
        messages of a part are handled so as well.
        """
        with self._lock:
            self._unfinished.add(job)
            with contextlib.suppress(OSError):
                if self._conn is not None:
                    self._conn.send(job)

    def withdraw(self, number: int) -> None:
        """Cancel a commit that has not begun; its outcome comes all the same."""
        with self._lock, contextlib.suppress(OSError):  # a new worker gets it again
            if self._conn is not None:
                self._conn.send(Withdraw(number))

    def remove_when_committed(self, number: int) -> None:
        """Let a save be deleted once a newer one is committed; never waits.

        A worker that dies forgets it: the caller asks again when the commit is reported.
        """
        with self._lock, contextlib.suppress(OSError):
            if self._conn is not None:
                self._conn.send(RemoveSave(number))

    @property
    def pid(self) -> int | None:
        """Process id of the worker, while there is one."""
        return self._process.pid if self._process is not None else None

    def ask(self, question: object, timeout_s: float) -> object:
        """Send a question and wait for its answer; for the start of a run, never for a step.

        Raises:
            StoreTransientError: no answer within `timeout_s` seconds.
            WorkerDiedError: the worker died again and again.
            Exception: the error that the worker answered with.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                self._send(question)
                answer = self._next_answer(until)
                break
            except WorkerDiedError:
                self._restart()  # every question may be repeated
        if answer is None:
            self.kill()
            msg = (
                f"no answer to {type(question).__name__} within {timeout_s:.0f} s: the store or the"
                " disk hangs; check the store's URL and the network, and the disk"
            )
            raise StoreTransientError(msg)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def begin(self, pinned: frozenset[str]) -> None:
        """Let the worker publish and delete from now on; digests in `pinned` are never deleted."""
        self._begin = Begin(pinned)
        if self._conn is None:
            self.start()  # sends it
            return
        try:
            self._send(self._begin)
        except WorkerDiedError:
            self._restart()  # sends it

    def wake(self) -> None:
        """Tell the worker that the disk changed; never waits."""
        self.send_if_room(Wake())  # a full pipe holds earlier wakes that were not read

    def send_if_room(self, message: Wake | LogMetrics) -> bool:
        """Send a message that may be lost; whether the pipe took it. Never waits."""
        if self._conn is None:
            return False
        with self._lock, contextlib.suppress(OSError):  # the next poll restarts
            poller = select.poll()  # select(2) knows no descriptor beyond 1023
            poller.register(self._conn.fileno(), select.POLLOUT)
            if poller.poll(0):
                self._conn.send(message)
                return True
        return False

    @property
    def has_events(self) -> bool:
        """Whether `poll` would return an event or restart the worker. Cheap: one poll(2)."""
        return bool(self._events) or bool(self._readable.poll(0))

    def poll(self) -> list[Event]:
        """The events since the last call; each is returned exactly once. Never waits.

        A worker that was killed is started again here.

        Raises:
            WorkerDiedError: it died again and again without a commit (`worker.restart_limit`).
        """
        try:
            while self._conn is not None and self._conn.poll(0):
                self._handle(self._conn.recv())
        except (EOFError, OSError):
            self._restart()
        events, self._events = self._events, []
        return events

    def await_event(self, timeout_s: float) -> None:
        """Wait until `poll` has an event, the worker dies, or `timeout_s` seconds are over."""
        with self._lock:
            if self._conn is None and self._unfinished:
                self.start()  # its last death was raised; its images are not committed
        if not self._events and self._conn is not None:
            with contextlib.suppress(OSError):
                self._conn.poll(timeout_s)

    def drain(self, timeout_s: float, left_s: Callable[[], float] = unlimited) -> None:
        """Wait until all committed checkpoints are published, and job files sent.

        `left_s` is called again and again: a signal may leave less time than `timeout_s`.

        Raises:
            DrainTimeoutError: something is not in the store; it stays on the disk.
        """
        timeout_s = min(timeout_s, max(0.0, left_s()))
        result = self.drained(timeout_s, left_s)
        if result is None or result.waiting:
            raise drain_report(result, timeout_s)

    def drained(self, timeout_s: float, left_s: Callable[[], float] = unlimited) -> Drained | None:
        """Like `drain`, but return what is left at the end; None if the worker did not answer."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            try:
                self._send(Drain(max(0.0, until - time.monotonic()), self.awaits_parts))
                return self._drained(until, left_s)
            except WorkerDiedError:
                self._restart()
        return None

    def _drained(self, until: float, left_s: Callable[[], float]) -> Drained | None:
        """Receive the answer to `Drain`, which comes by the deadline unless a store hangs."""
        while time.monotonic() < until + _EXIT_S and left_s() > -_LATE_S:
            message = self._next(min(until + _EXIT_S, time.monotonic() + _LATE_S))
            if isinstance(message, Drained):
                return message
            if message is not None:
                self._handle(message)
        return None

    def stop(self, *, hasty: bool = False) -> None:
        """End the process; idempotent. `hasty`: it ends after a commit under way, by itself."""
        if self._process is None:
            return
        with contextlib.suppress(WorkerDiedError):
            self._send(Stop())
        if self._process is None:
            return  # it was dead
        if is_over(self._process, _LATE_S if hasty else _EXIT_S) or not hasty:
            self.kill()

    def kill(self) -> None:
        """Kill the process; the next one does again what it was doing."""
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            collect_exit(self._process)
        if self._conn is not None:
            self._conn.close()
        self._readable = select.poll()
        self._process = self._conn = None

    def _send(self, message: object) -> None:
        with self._lock:
            if self._conn is None:
                self.start()
            try:
                self._conn.send(message)  # type: ignore[union-attr]  # start() sets it
            except OSError as error:
                raise WorkerDiedError(self._death_message()) from error

    def _next(self, until: float) -> object | None:
        """The next message, or None at the deadline."""
        try:
            if self._conn is not None and self._conn.poll(max(0.0, until - time.monotonic())):
                return self._conn.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._death_message()) from error
        return None

    def _next_answer(self, until: float) -> Answer | None:
        """The next answer, or None at the deadline; events before it are kept for `poll`."""
        while (message := self._next(until)) is not None:
            if isinstance(message, Answer):
                return message
            self._handle(message)
        return None

    def _handle(self, message: object) -> None:
        if isinstance(message, Outcome):
            if not self._unfinished.ended(message.number):
                return  # the second report: a worker died just after its commit
            self._events.append(message)
        elif isinstance(message, PartDurable):
            with self._lock:
                arena_free = self._unfinished.part_durable(message.number)
            self._events += [message] * arena_free
        elif isinstance(message, Published | WorkFailed):
            self._events.append(message)
        if isinstance(message, Committed | Published | PartDurable):
            self._restarts.reset()

    def _restart(self) -> None:
        with self._lock:
            message = self._death_message()
            self._kill()
            self._restarts.add(message)
            self.start()

    def _death_message(self) -> str:
        code = exit_code(self._process, 1) if self._process is not None else None
        return self._restarts.death_message(code) + frozen_advice()
