"""The process of one attempt's command: start, signals to it and all that it started, and end."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

from typing_extensions import Self

from bt_lightning.runtime.process_tree import adopt_orphans, descendants, has_handler, reap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from bt_lightning.job_record import StopRequest

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTSTP,
)
ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
"""Signals that tell a job to end; what SIGUSR1 of SLURM means, the training decides."""
_USER_SIGNALS: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})
"""Sent only to processes with a handler: they end any other, such as torchrun."""
_INTERRUPTS_TO_KILL: Final = 3
"""So many Ctrl-C kill the job."""
_NOT_FOUND, _NOT_RUN = 127, 126
"""A shell's exit codes for a program that does not exist, or cannot be executed."""
_POLL_MS: Final = 1000
_TICK_S: Final = 0.05
_LEFTOVERS_S: Final = 10.0
"""Seconds for background processes of a command that ended."""
_SAVING_S: Final = 120.0
"""Seconds for a training that outlives its script after a signal to end: it saves."""
_KILL_WAIT_S: Final = 5.0
"""Seconds for killed processes to be gone; one that waits for a dead disk may never be."""


class Child:
    """Runs commands and forwards the signals that this process gets. Main thread only.

    Each command has a session and a process group of its own: a signal reaches whatever it
    started, and a Ctrl-C of the terminal reaches it once, forwarded.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        """Processes that live `grace_s` seconds after a signal to end are killed."""
        self.stopped_by: int | None = None
        """The first signal that told the job to end; SIGTERM for a request."""
        self.keep_open: tuple[int, ...] = ()
        """Descriptors that the commands inherit."""
        self.streams: tuple[int | None, int | None] = (None, None)
        """Descriptors of their standard output and error; None: this process's own."""
        self.on_resize: Callable[[], None] = lambda: None
        """Called when the terminal has another size, before the commands hear of it."""
        self._grace_s = grace_s
        self._preparing = False
        self._platform_kills_at = math.inf
        self._overdue_at = math.inf
        self._request: StopRequest | None = None
        self._group: int | None = None
        self._pending_signals: set[int] = set()
        self._interrupts = 0
        self._old_handlers: dict[int, object] = {}

    @property
    def impatient(self) -> bool:
        """Whether Ctrl-C was pressed three times."""
        return self._interrupts >= _INTERRUPTS_TO_KILL

    @property
    def left_s(self) -> float:
        """Seconds until the platform kills this job; infinite without a signal to end."""
        return self._platform_kills_at - time.monotonic()

    @property
    def is_preparing(self) -> bool:
        """Whether no command may run yet; read by any thread."""
        return self._preparing

    def __enter__(self) -> Self:
        """Install the handlers, and become the parent of orphaned descendants."""
        adopt_orphans()
        # if ignored, as under daemons and `trap '' CHLD`, the exit code would be lost
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # SIG_IGN: set by nohup
                self._old_handlers[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as signal() gave it

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Raise for a signal to end in the block, which runs before any command."""
        self._preparing = True
        try:
            yield
        finally:
            self._preparing = False

    def run(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        tick: Callable[[], None],
    ) -> int:
        """Run a command until it and all that it started have ended; return its exit code.

        The code is -N if signal N ended it. `tick` is called at least every second.

        Raises:
            OSError: the system has no room for another process.
        """
        self._pending_signals.clear()
        try:
            child = subprocess.Popen(  # noqa: S603 - what the user asked to be run
                command,
                cwd=directory,
                env=environment,
                stdout=self.streams[0],
                stderr=self.streams[1],
                pass_fds=self.keep_open,
                start_new_session=True,
            )
        except FileNotFoundError:
            return _NOT_FOUND
        except PermissionError:
            return _NOT_RUN
        self._group = child.pid
        try:
            # these came before the command ran
            for number in self._pending_signals | ({self.stopped_by} if self.stopped_by else set()):
                self._signal(number)
            self._wait_for(child, tick)
            self._end_leftovers(tick)
        finally:
            self._kill_all()
            self._group = None
        return child.returncode

    def end(self, request: StopRequest) -> bool:
        """End the job as SIGTERM does; return False if `request` was the last one already.

        The platform does not kill the job then. Processes that live longer than the seconds that
        the request gives are killed.
        """
        if request == self._request:
            return False
        self._request = request
        self.stopped_by = self.stopped_by or signal.SIGTERM
        if request.grace_s is not None:
            self._overdue_at = min(self._overdue_at, time.monotonic() + request.grace_s)
        self._signal(signal.SIGTERM)
        return True

    def sleep(self, seconds: float, tick: Callable[[], None]) -> None:
        """Wait `seconds`, or until the job is told to end."""
        until = time.monotonic() + seconds
        while self.stopped_by is None and time.monotonic() < until:
            time.sleep(_TICK_S)  # a signal does not end it: its handler returns
            tick()

    def _wait_for(self, child: subprocess.Popen[bytes], tick: Callable[[], None]) -> None:
        with _ending(child.pid) as poll:
            while child.poll() is None:
                poll.poll(_POLL_MS)
                reap(child.pid)
                if self._overdue():
                    self._signal(signal.SIGKILL)
                tick()

    def _end_leftovers(self, tick: Callable[[], None]) -> None:
        """Wait for what the command left running: a training may outlive its script."""
        stopping = self.stopped_by is not None
        if not stopping:
            _send(signal.SIGTERM, descendants())
        until = time.monotonic() + (_SAVING_S if stopping else _LEFTOVERS_S)
        while descendants() and time.monotonic() < until and not self._overdue():
            time.sleep(_TICK_S)
            tick()

    def _kill_all(self) -> None:
        until = time.monotonic() + _KILL_WAIT_S
        while (left := descendants()) and time.monotonic() < until:
            _send(signal.SIGKILL, left)
            time.sleep(_TICK_S)
        reap(0)

    def _overdue(self) -> bool:
        return self.impatient or time.monotonic() >= self._overdue_at

    def _forward(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTSTP:
            self._pause()
            return
        if number == signal.SIGWINCH:
            self.on_resize()
        if self._preparing and number in ENDING:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if number in ENDING:
            self.stopped_by = self.stopped_by or number
            if self._grace_s is not None and math.isinf(self._platform_kills_at):
                self._platform_kills_at = time.monotonic() + self._grace_s
                self._overdue_at = min(self._overdue_at, self._platform_kills_at)
        self._interrupts += number == signal.SIGINT
        self._signal(number)

    def _signal(self, number: int) -> None:
        if self._group is None:
            self._pending_signals.add(number)
            return
        if number in _USER_SIGNALS and (
            handling := [p for p in descendants() if has_handler(p, number)]
        ):
            _send(number, handling)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, number)

    def _pause(self) -> None:
        """Ctrl-Z: stop the command too, until the shell continues this process.

        Without a shell with job control the kernel ignores the SIGTSTP, and all continues.
        """
        stopped = descendants()
        _send(signal.SIGSTOP, stopped)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # stops this process
        signal.signal(signal.SIGTSTP, self._forward)
        _send(signal.SIGCONT, stopped)


def _send(number: int, pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def _ending(pid: int) -> Iterator[select.poll]:
    """Yield a poll object that wakes when process `pid` ends."""
    poll, descriptor = select.poll(), os.pidfd_open(pid)
    poll.register(descriptor, select.POLLIN)
    try:
        yield poll
    finally:
        os.close(descriptor)
