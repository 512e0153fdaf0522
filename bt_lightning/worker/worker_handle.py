"""The training process's end of the worker: start, ask, wake, poll, drain, stop."""

from __future__ import annotations

import contextlib
import math
import select
import threading
import time
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    StoreTransientError,
    WorkerDiedError,
)
from bt_lightning.worker.child_exit import collect_exit, exit_code, is_over
from bt_lightning.worker.drain_report import drain_report
from bt_lightning.worker.restart_limit import RestartLimit
from bt_lightning.worker.spawn import birth_advice, spawn
from bt_lightning.worker_messages import (
    Answer,
    Begin,
    CommitFailed,
    CommitImage,
    Committed,
    Drain,
    Drained,
    DropArena,
    Published,
    ShareArena,
    Stop,
    Unwanted,
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

Outcome = Committed | CommitFailed | Withdrawn
Event = Published | WorkFailed | Outcome
_EXIT_S = 10.0
_LATE_S = 0.5
"""Between two looks at how much time is left; also what an answer may come late."""


def ever() -> float:
    """How much time is left where nobody set a limit."""
    return math.inf


class Worker:
    """One worker process, as the rank that writes sees it. Not shared between processes.

    One thread receives (`ask`, `poll`, `await_event`, `drain`, `stop`); `share`, `drop` and
    `commit` may be called by another one beside it.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._process: SpawnProcess | None = None
        self._conn: Connection | None = None
        self._deaths = RestartLimit(Path(config.root))
        self._begun: Begin | None = None
        self._events: list[Event] = []
        self._using = threading.RLock()
        self._ear = select.poll()
        self._arenas: dict[int, tuple[int, int]] = {}
        self._open: dict[int, CommitImage] = {}

    def start(self) -> None:
        """Spawn the process; scripts without a main guard, stdin and notebooks work as well."""
        with self._using:
            self._start()

    def _start(self) -> None:
        self._process, self._conn = spawn(self._config)
        self._ear = select.poll()
        self._ear.register(self._conn.fileno(), select.POLLIN)
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):  # the next poll sees it, and starts another
                self._tell_again()

    def _tell_again(self) -> None:
        """Tell a new process what an earlier one knew."""
        for index, (descriptor, size) in self._arenas.items():
            self._send_arena(index, descriptor, size)
        if self._begun is not None:  # first: a commit may need room
            self._conn.send(self._begun)  # type: ignore[union-attr]  # start() sets it
        for job in self._open.values():
            self._conn.send(job)  # type: ignore[union-attr]

    def _send_arena(self, index: int, descriptor: int, size: int) -> None:
        assert self._conn is not None
        assert self._process is not None
        assert self._process.pid is not None
        self._conn.send(ShareArena(index, size))
        send_handle(self._conn, descriptor, self._process.pid)

    def share(self, index: int, descriptor: int, size: int) -> None:
        """Let the worker map an arena; `descriptor` stays open here until `drop`."""
        with self._using:
            self._arenas[index] = (descriptor, size)
            with contextlib.suppress(OSError):  # the next poll starts another, and tells it
                if self._conn is not None:
                    self._send_arena(index, descriptor, size)

    def drop(self, index: int) -> None:
        """Let the worker forget an arena that no open commit uses."""
        with self._using:
            del self._arenas[index]
            with contextlib.suppress(OSError):
                if self._conn is not None:
                    self._conn.send(DropArena(index))

    def commit(self, job: CommitImage) -> None:
        """Let the worker commit a complete image; its outcome comes as an event, once.

        A worker that dies over it is replaced, and told again. Never waits for the disk.
        """
        with self._using:
            self._open[job.number] = job
            with contextlib.suppress(OSError):
                if self._conn is not None:
                    self._conn.send(job)

    def withdraw(self, number: int) -> None:
        """Give up a commit that has not begun; its outcome comes all the same."""
        with self._using, contextlib.suppress(OSError):  # a new worker is asked again
            if self._conn is not None:
                self._conn.send(Withdraw(number))

    def unwanted(self, number: int) -> None:
        """Say that a save is to go when something newer stands in for it; never waits.

        What a worker that dies over it forgets is asked for when its commit is told.
        """
        with self._using, contextlib.suppress(OSError):
            if self._conn is not None:
                self._conn.send(Unwanted(number))

    @property
    def pid(self) -> int | None:
        """Process id of the worker, while there is one."""
        return self._process.pid if self._process is not None else None

    def ask(self, question: object, timeout_s: float) -> object:
        """Send a question and wait for its answer; for the start of a run, never for a step.

        Raises:
            StoreTransientError: no answer in time.
            WorkerDiedError: it died over it, again and again.
            Exception: whatever the worker answered with.
        """
        until = time.monotonic() + timeout_s
        while True:
            try:
                self._send(question)
                answer = self._await(until)
                break
            except WorkerDiedError:
                self._revive()  # every question may be asked again
        if answer is None:
            self.kill()
            msg = (
                f"the store did not answer {type(question).__name__} within {timeout_s:.0f} s:"
                " check its URL and the network"
            )
            raise StoreTransientError(msg)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def begin(self, pinned: frozenset[str]) -> None:
        """Let the worker publish and delete from now on."""
        self._begun = Begin(pinned)
        if self._conn is None:
            self.start()  # which tells it
            return
        try:
            self._send(self._begun)
        except WorkerDiedError:
            self._revive()  # which tells the new one

    def wake(self) -> None:
        """Tell the worker that the disk changed; never waits."""
        if self._conn is None:
            return
        with self._using, contextlib.suppress(OSError):  # the next poll finds it dead
            # a full pipe holds earlier wakes that were not read yet: one of them is enough
            poller = select.poll()  # select(2) knows no descriptor beyond 1023
            poller.register(self._conn.fileno(), select.POLLOUT)
            if poller.poll(0):
                self._conn.send(Wake())

    @property
    def stirred(self) -> bool:
        """Whether `poll` would come to something: an event, or the death of the process. Cheap."""
        return bool(self._events) or bool(self._ear.poll(0))

    def poll(self) -> list[Event]:
        """What happened since the last call; each event is handed out exactly once. Never waits.

        A worker that was killed is started again here.

        Raises:
            WorkerDiedError: it died again and again without a commit (`worker.restart_limit`).
        """
        try:
            while self._conn is not None and self._conn.poll(0):
                self._keep(self._conn.recv())
        except (EOFError, OSError):
            self._revive()
        events, self._events = self._events, []
        return events

    def await_event(self, timeout_s: float) -> None:
        """Wait until there is something to `poll`, or the time is over, or the worker died."""
        with self._using:
            if self._conn is None and self._open:
                self.start()  # after its last death, which was raised; what it had is not done
        if not self._events and self._conn is not None:
            with contextlib.suppress(OSError):
                self._conn.poll(timeout_s)

    def drain(self, timeout_s: float, left_s: Callable[[], float] = ever) -> None:
        """Wait until all that is committed is published, and other files are sent.

        `left_s` is asked again and again: a signal may leave less time than there was at first.

        Raises:
            DrainTimeoutError: some of it is not; it stays on the disk for the next start.
        """
        timeout_s = min(timeout_s, max(0.0, left_s()))
        result = self.drained(timeout_s, left_s)
        if result is None or result.waiting:
            raise drain_report(result, timeout_s)

    def drained(self, timeout_s: float, left_s: Callable[[], float] = ever) -> Drained | None:
        """Wait until everything committed is published, or the time is over; what is left then.

        None if the worker did not answer.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            try:
                self._send(Drain(max(0.0, until - time.monotonic())))
                return self._drained(until, left_s)
            except WorkerDiedError:
                self._revive()
        return None

    def _drained(self, until: float, left_s: Callable[[], float]) -> Drained | None:
        """The answer to `Drain`, which the worker gives at the deadline unless a store hangs."""
        while time.monotonic() < until + _EXIT_S and left_s() > -_LATE_S:
            message = self._next(min(until + _EXIT_S, time.monotonic() + _LATE_S))
            if isinstance(message, Drained):
                return message
            if message is not None:
                self._keep(message)
        return None

    def stop(self, *, hasty: bool = False) -> None:
        """End the process; idempotent.

        `hasty` does not wait for a commit under way; the process ends when that is done.
        """
        if self._process is None:
            return
        with contextlib.suppress(WorkerDiedError):
            self._send(Stop())
        if self._process is None:
            return  # it had died
        over = is_over(self._process, _LATE_S if hasty else _EXIT_S)
        if over or not hasty:
            self.kill()

    def kill(self) -> None:
        """End the process at once; what it was doing is done again by the next one."""
        with self._using:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            collect_exit(self._process)
        if self._conn is not None:
            self._conn.close()
        self._ear = select.poll()
        self._process = self._conn = None

    def _send(self, message: object) -> None:
        with self._using:
            if self._conn is None:
                self.start()
            try:
                self._conn.send(message)  # type: ignore[union-attr]  # start() sets it
            except OSError as error:
                raise WorkerDiedError(self._obituary()) from error

    def _next(self, until: float) -> object | None:
        """The next message, or None at the deadline."""
        try:
            if self._conn is not None and self._conn.poll(max(0.0, until - time.monotonic())):
                return self._conn.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._obituary()) from error
        return None

    def _await(self, until: float) -> Answer | None:
        """The next answer, or None at the deadline; events that come first are kept."""
        while (message := self._next(until)) is not None:
            if isinstance(message, Answer):
                return message
            self._keep(message)
        return None

    def _keep(self, message: object) -> None:
        if isinstance(message, Outcome):
            if self._open.pop(message.number, None) is None:
                return  # told twice, as one worker died when it had just done it
            self._events.append(message)
        elif isinstance(message, Published | WorkFailed):
            self._events.append(message)
        if isinstance(message, Committed | Published):
            self._deaths.forget()

    def _revive(self) -> None:
        with self._using:
            obituary = self._obituary()
            self._kill()
            self._deaths.add(obituary)
            self.start()

    def _obituary(self) -> str:
        code = exit_code(self._process, 1) if self._process is not None else None
        return self._deaths.obituary(code) + birth_advice()
