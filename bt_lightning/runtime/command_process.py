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

from bt_lightning.runtime.process_tree import adopt_orphans, catches, family, reap

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
    signal.SIGTSTP,
)
ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
"""Signals that tell a job to end; what SIGUSR1 of SLURM means, the training decides."""
_ASKED_FOR: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})
"""Signals that end whoever has no handler for them, such as torchrun above a training that has."""
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
_KILLED_S: Final = 5.0
"""Until what was killed is gone; a process that waits for a dead disk may never be."""


class Child:
    """Runs commands and passes on the signals that this process gets. Main thread only.

    Each command has a session, and so a process group, of its own: a signal reaches whatever it
    started, and a Ctrl-C of the terminal reaches it once, from here.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        """What lives `grace_s` after it was told to end is killed."""
        self.stopped_by: int | None = None
        """The first signal that told the job to end."""
        self.keep_open: tuple[int, ...] = ()
        """Descriptors that the commands inherit."""
        self._grace_s = grace_s
        self._preparing = False
        self._stopped_at = 0.0
        self._group: int | None = None
        self._missed: set[int] = set()
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
        """From here on no signal is lost, and no orphan."""
        adopt_orphans()
        # ignored, as daemons and `trap '' CHLD` leave it, it would hide how the command ended
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # of nohup: as it was asked
                self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as signal() gave it

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """While there is no command to pass it on to, a signal to end is an exception."""
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
        """Run a command until it and all that it started have ended; its code, `-N` by signal N.

        `tick` is called at least every second.

        Raises:
            OSError: the system has no room for another process.
        """
        self._missed.clear()
        try:
            child = subprocess.Popen(  # noqa: S603 - what the user asked to be run
                command,
                cwd=directory,
                env=environment,
                pass_fds=self.keep_open,
                start_new_session=True,
            )
        except FileNotFoundError:
            return _NOT_FOUND
        except PermissionError:
            return _NOT_RUN
        self._group = child.pid
        try:
            # these came when there was nobody to pass them on to
            for number in self._missed | ({self.stopped_by} if self.stopped_by else set()):
                self._signal(number)
            self._await(child, tick)
            self._end_rest(tick)
        finally:
            self._kill_all()
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
                reap(child.pid)
                if self._overdue():
                    self._signal(signal.SIGKILL)
                tick()

    def _end_rest(self, tick: Callable[[], None]) -> None:
        """Let what the command left end: a script may be gone before its training has saved."""
        stopping = self.stopped_by is not None
        if not stopping:
            _send(signal.SIGTERM, family())
        until = time.monotonic() + (_SAVING_S if stopping else _LEFT_S)
        while family() and time.monotonic() < until and not self._overdue():
            time.sleep(_TICK_S)
            tick()

    def _kill_all(self) -> None:
        until = time.monotonic() + _KILLED_S
        while (left := family()) and time.monotonic() < until:
            _send(signal.SIGKILL, left)
            time.sleep(_TICK_S)
        reap(0)

    def _overdue(self) -> bool:
        return self.impatient or self.left_s <= 0

    def _forward(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTSTP:
            self._pause()
            return
        if self._preparing and number in ENDING:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if number in ENDING and self.stopped_by is None:
            self.stopped_by, self._stopped_at = number, time.monotonic()
        self._interrupts += number == signal.SIGINT
        self._signal(number)

    def _signal(self, number: int) -> None:
        if self._group is None:
            self._missed.add(number)
            return
        if number in _ASKED_FOR and (asked := [p for p in family() if catches(p, number)]):
            _send(number, asked)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, number)

    def _pause(self) -> None:
        """Ctrl-Z: the command as well stands still, until the shell goes on with this process.

        The kernel forgets a SIGTSTP for which there is no such shell, and all goes on.
        """
        stopped = family()
        _send(signal.SIGSTOP, stopped)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # here it stops
        signal.signal(signal.SIGTSTP, self._forward)
        _send(signal.SIGCONT, stopped)


def _send(number: int, pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def _ending(pid: int) -> Iterator[select.poll]:
    """A poll that the end of a process wakes."""
    poll, descriptor = select.poll(), os.pidfd_open(pid)
    poll.register(descriptor, select.POLLIN)
    try:
        yield poll
    finally:
        os.close(descriptor)
