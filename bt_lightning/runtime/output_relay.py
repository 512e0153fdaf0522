"""The relay: a process between a command and the runner's own output, which logs what passes.

`python -m bt_lightning.runtime.output_relay CONTROL READ,WRITE,NAME...`: descriptors of a socket to
the runner, and of each stream, where it comes from and where it goes. It passes everything on at
once, unchanged, and appends the lines to the log of the checkpoint directory, without secrets. It
outlives a runner that is killed, whose command would otherwise die of a broken pipe; it ends with
the last process that has the pipes open. Imports no torch, and opens no store: a worker sends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from bt_lightning.localdir.event_log import append, log_line
from bt_lightning.log_kinds import OUTPUT
from bt_lightning.runtime.printed_lines import PrintedLines
from bt_lightning.store.secrets import hide

_READ_BYTES: Final = 64 * 1024
_IDLE_MS: Final = 1000
_LINES: Final = 500
"""Lines that are logged with one write."""
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
"""What a terminal or a platform sends to all: the command's last words are still to come."""


class _Stream:
    def __init__(self, words: str) -> None:
        source, target, self.name = words.split(",")
        self.source, self.target = int(source), int(target)
        self.lines = PrintedLines(time.monotonic())
        self.open = self._passes = True
        os.set_blocking(self.source, False)

    def read(self, *, most: int = _LINES) -> list[str]:
        """Pass on what is there; return the lines that it ends, some more than `most` of them."""
        lines: list[str] = []
        while True:
            try:
                data = os.read(self.source, _READ_BYTES)
            except BlockingIOError:
                return lines
            except OSError:  # EIO: nobody has the terminal open any more
                data = b""
            if not data:
                self.open = False
                return lines + self.lines.rest(time.monotonic(), ended=True)
            self._pass_on(data)
            lines += self.lines.add(data, time.monotonic())
            if len(lines) > most:
                return lines  # the other stream has a turn

    def _pass_on(self, data: bytes) -> None:
        while data and self._passes:
            try:
                data = data[os.write(self.target, data) :]
            except BlockingIOError:
                select.select([], [self.target], [], 1.0)
            except OSError:  # nobody reads any more, as behind `| head`
                self._passes = False


class _Relay:
    def __init__(self, control: socket.socket, streams: list[_Stream]) -> None:
        self._control: socket.socket | None = control
        self._streams = streams
        self._words = b""
        self._attempt = 0
        self._root: Path | None = None
        self._secrets: list[str] = []

    def run(self) -> None:
        poll = select.poll()
        if self._control is not None:
            poll.register(self._control, select.POLLIN)
        for stream in self._streams:
            poll.register(stream.source, select.POLLIN)
        while self._root is None and self._control is not None:
            self._receive(poll)  # before anything is read: where it is logged
        while any(stream.open for stream in self._streams):
            ready = {descriptor for descriptor, _ in poll.poll(_IDLE_MS)}
            for stream in self._streams:
                if stream.source in ready and stream.open:
                    self._log(stream, stream.read())
                    if not stream.open:
                        poll.unregister(stream.source)
                self._log(stream, stream.lines.rest(time.monotonic()))
            if self._control is not None and self._control.fileno() in ready:
                self._receive(poll)

    def _receive(self, poll: select.poll) -> None:
        """Handle messages, each a line of JSON; what was printed before one belongs before it."""
        assert self._control is not None
        data = b""
        with contextlib.suppress(OSError):
            data = self._control.recv(_READ_BYTES)
        if not data:  # the runner is gone
            poll.unregister(self._control)
            self._control = None
            return
        *messages, self._words = (self._words + data).split(b"\n")
        for message in messages:
            for stream in self._streams if self._root is not None else ():
                if stream.open:
                    self._log(stream, stream.read(most=sys.maxsize))
                self._log(stream, stream.lines.rest(time.monotonic(), ended=True))
            told = json.loads(message)
            self._take(told)
            with contextlib.suppress(OSError):
                self._control.send(b"%d\n" % told["number"])

    def _take(self, told: dict[str, Any]) -> None:
        self._root = Path(told["root"])
        self._secrets, self._attempt = told["secrets"], told["attempt"]
        for stream in self._streams:
            stream.lines.hide = partial(hide, secrets=self._secrets)
            stream.lines.longest_secret = max(map(len, self._secrets), default=0)

    def _log(self, stream: _Stream, texts: list[str]) -> None:
        if not texts or self._root is None:
            return
        at, attempt = time.time(), self._attempt
        hidden = hide("\n".join(texts), self._secrets)
        lines = (
            log_line("output", at, attempt=attempt, stream=stream.name, text=text)
            for text in hidden.split("\n")
        )
        with contextlib.suppress(OSError):  # a full disk, which the checkpoints report
            append(self._root, b"".join(lines), OUTPUT)


def relay(words: list[str]) -> None:
    """Relay until every stream has ended."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(words[0])) as control:
        _Relay(control, [_Stream(word) for word in words[1:]]).run()


if __name__ == "__main__":
    relay(sys.argv[1:])
