"""The runner's side of the relay: pipes for a command's output, and the process that reads them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import termios
import threading
import time
import tty
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

_RELAY: Final = "bt_lightning.runtime.output_relay"
_STDOUT, _STDERR = 1, 2
_ANSWER_S: Final = 5.0
"""Seconds for what was printed to pass; a terminal that is stopped may take longer."""
_MOST_DEATHS: Final = 3
_SHORT_S: Final = 10.0
"""Seconds; so many deaths after shorter lives mean that the relay cannot live here."""
_READ_BYTES: Final = 64 * 1024
_END_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Way:
    """A stream: where the command writes, where the relay reads, and where that goes."""

    name: str
    target: int
    read: int
    write: int


class OutputCapture:
    """Lets what commands print pass through a relay. The runner's main thread calls it.

    The command has a terminal where the runner has one, else a pipe. Where standard output and
    error are one file or terminal, so are they for the command: the order of lines is kept.
    """

    def __init__(self, root: Path, secrets: Collection[str], warn: Callable[[str], None]) -> None:
        """`root` has the log; `secrets` are hidden in it. `warn` tells people if none is kept."""
        self._warn = warn
        self._deaths, self._started_at = 0, 0.0
        self._threads: list[threading.Thread] = []
        self._told: dict[str, Any] = {
            "root": str(root),
            "secrets": sorted(secrets),
            "attempt": 0,
            "number": 0,
        }
        self._relay: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ways: list[_Way] = []
        for descriptor, name in ((_STDOUT, "stdout"), (_STDERR, "stderr")):
            with contextlib.suppress(OSError):  # closed: then so it is for the command
                self._open(descriptor, name)
        self._start()

    @property
    def streams(self) -> tuple[int | None, int | None]:
        """Descriptors for the command's standard output and error; None: the runner's own."""
        found = {way.target: way.write for way in self._ways}
        first = found.get(_STDOUT)
        return first, found.get(_STDERR, first if len(self._ways) == 1 else None)

    def begin(self, attempt: int) -> None:
        """What comes from here on belongs to this attempt; all before it has passed."""
        self._told["attempt"] = attempt
        self._tell()

    def settle(self) -> None:
        """Wait until what was printed has passed, so that the runner's own lines come behind it."""
        self._tell()

    def tick(self) -> None:
        """Start a relay that was killed again: a command must not wait for it.

        If it cannot live here, what is printed passes through this process, and is not logged.
        """
        if self._relay is None or self._relay.poll() is None:
            return
        lived_s = time.monotonic() - self._started_at
        self._deaths = self._deaths + 1 if lived_s < _SHORT_S else 1
        if self._deaths < _MOST_DEATHS:
            self._start()
            return
        self._relay = None
        self._warn("what the command prints is not logged: the process that does it keeps dying")
        for way in self._ways:
            self._threads.append(threading.Thread(target=_pass_on, args=[way], daemon=True))
            self._threads[-1].start()

    def resize(self) -> None:
        """Give the command's terminal the size of the runner's."""
        for way in self._ways:
            with contextlib.suppress(OSError):  # it is a pipe
                size = fcntl.ioctl(way.target, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(way.write, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        """End the relay, once all has passed."""
        for way in self._ways:
            os.close(way.write)
        relay, self._relay = self._relay, None
        if relay is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                relay.wait(_END_S)  # later it ends with its reader: a pager may be paused
        for thread in self._threads:
            thread.join(_END_S)
        for way in self._ways:
            os.close(way.read)
        self._ways = []
        if self._control is not None:
            self._control.close()

    def _open(self, target: int, name: str) -> None:
        there = os.fstat(target)
        for way in self._ways:
            if os.path.samestat(there, os.fstat(way.target)):
                return  # one stream for both
        if os.isatty(target):
            read, write = os.openpty()
            tty.setraw(write)  # the runner's own terminal does what there is to do
        else:
            read, write = os.pipe()
        self._ways.append(_Way(name, target, read, write))
        self.resize()

    def _start(self) -> None:
        if not self._ways:
            return
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(0)
        kept = [theirs.fileno(), *(way.read for way in self._ways)]
        words = [f"{way.read},{way.target},{way.name}" for way in self._ways]
        command = [sys.executable, "-m", _RELAY, str(theirs.fileno()), *words]
        with theirs:
            # in the runner's session, whose processes are never taken for the command's
            self._relay = subprocess.Popen(  # noqa: S603 - our own module
                command, stdin=subprocess.DEVNULL, pass_fds=kept
            )
        self._started_at = time.monotonic()
        self._send()

    def _send(self) -> None:
        self._told["number"] += 1
        if self._control is not None:
            with contextlib.suppress(OSError):  # it was killed: `tick` starts another
                self._control.send(json.dumps(self._told).encode() + b"\n")

    def _tell(self) -> None:
        """Send the message, and wait for the answer to it."""
        self._send()
        if self._control is None:
            return
        wanted, answers, until = b"%d" % self._told["number"], b"", time.monotonic() + _ANSWER_S
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while wanted not in answers.split(b"\n")[:-1] and time.monotonic() < until:
            if poll.poll(1000 * max(0.0, until - time.monotonic())):
                try:
                    data = self._control.recv(1024)
                except OSError:
                    return
                if not data:
                    return  # it was killed
                answers += data


def _pass_on(way: _Way) -> None:
    """Pass a stream on to its end; a thread of its own does."""
    poll = select.poll()
    poll.register(way.read, select.POLLIN)
    while True:
        poll.poll()
        try:
            data = os.read(way.read, _READ_BYTES)
        except BlockingIOError:
            continue
        except OSError:  # EIO: nobody has the terminal open any more
            return
        if not data:
            return
        with contextlib.suppress(OSError):  # nobody listens
            while data:
                data = data[os.write(way.target, data) :]
