"""The command of one attempt: started, signalled with all that it started, and waited for."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
"""Signals that tell a job to end; what SIGUSR1 of SLURM means, the training decides."""
_IMPATIENT: Final = 3
"""Ctrl-C so often means now."""
_NOT_FOUND, _NOT_RUN = 127, 126
"""What a shell reports of a program that is not there, or is none."""
_LOOK_MS: Final = 1000
_TICK_S: Final = 0.05
_LEFT_S: Final = 10.0
"""For what an ended command left in the background."""
_SAVING_S: Final = 120.0
"""For what was told to end and outlives the script that started it: training that saves."""


class Child:
    """Runs commands and passes on the signals that this process gets. Main thread only.

    Each command has a session, and so a process group, of its own: a signal reaches whatever it
    started, and a Ctrl-C of the terminal reaches it once, from here.
    """

    def __init__(self, grace_s: float | None = None, keep_open: Sequence[int] = ()) -> None:
        """What lives `grace_s` after it was told to end is killed.

        `keep_open` are descriptors that the commands inherit.
        """
        self.stopped_by: int | None = None
        """The first signal that told the job to end."""
        self._grace_s = grace_s
        self._keep_open = tuple(keep_open)
        self._stopped_at = 0.0
        self._group: int | None = None
        self._interrupts = 0
        self._before: dict[int, object] = {}

    @property
    def impatient(self) -> bool:
        """Whether somebody pressed Ctrl-C again and again."""
        return self._interrupts >= _IMPATIENT

    @property
    def left_s(self) -> float:
        """Seconds until the platform kills this job; endless if it was not told to end."""
        if self._grace_s is None or self.stopped_by is None:
            return math.inf
        return self._stopped_at + self._grace_s - time.monotonic()

    def __enter__(self) -> Self:
        """From here on signals are forwarded."""
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # of nohup: as it was asked
                self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as signal() gave it

    def run(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        tick: Callable[[], None],
    ) -> int:
        """Run a command until it and all in its group have ended; its exit code, `-N` by signal N.

        `tick` is called at least every second.

        Raises:
            OSError: the system has no room for another process.
        """
        try:
            child = subprocess.Popen(  # noqa: S603 - what the user asked to be run
                command,
                cwd=directory,
                env=environment,
                pass_fds=self._keep_open,
                start_new_session=True,
            )
        except FileNotFoundError:
            return _NOT_FOUND
        except PermissionError:
            return _NOT_RUN
        self._group = child.pid
        try:
            if self.stopped_by is not None:  # it came when there was nobody to pass it on to
                self._signal(self.stopped_by)
            self._await(child, tick)
            self._end_group(child.pid, tick)
        finally:
            self._signal(signal.SIGKILL)
            self._group = None
        return child.returncode

    def sleep(self, seconds: float, tick: Callable[[], None]) -> None:
        """Wait, unless the job is told to end."""
        until = time.monotonic() + seconds
        while self.stopped_by is None and time.monotonic() < until:
            time.sleep(_TICK_S)  # a signal does not end it: its handler returns
            tick()

    def _await(self, child: subprocess.Popen[bytes], tick: Callable[[], None]) -> None:
        with _ending(child.pid) as poll:
            while child.poll() is None:
                poll.poll(_LOOK_MS)
                if self._overdue():
                    self._signal(signal.SIGKILL)
                tick()

    def _end_group(self, group: int, tick: Callable[[], None]) -> None:
        """Let what the command left end: a script may be gone before its training has saved."""
        stopping = self.stopped_by is not None
        if not stopping:
            self._signal(signal.SIGTERM)
        until = time.monotonic() + (_SAVING_S if stopping else _LEFT_S)
        while _lives(group) and time.monotonic() < until and not self._overdue():
            time.sleep(_TICK_S)
            tick()

    def _overdue(self) -> bool:
        return self.impatient or self.left_s <= 0

    def _forward(self, number: int, _: FrameType | None) -> None:
        if number in ENDING and self.stopped_by is None:
            self.stopped_by, self._stopped_at = number, time.monotonic()
        self._interrupts += number == signal.SIGINT
        self._signal(number)

    def _signal(self, number: int) -> None:
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, number)


@contextlib.contextmanager
def _ending(pid: int) -> Iterator[select.poll]:
    """A poll that the end of a process wakes."""
    poll, descriptor = select.poll(), os.pidfd_open(pid)
    poll.register(descriptor, select.POLLIN)
    try:
        yield poll
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def ending_by_exit() -> Iterator[None]:
    """While there is no command to pass it on to, a signal to end is `SystemExit`."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _lives(group: int) -> bool:
    """Whether a process group has a process; those that were left to this one are reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
