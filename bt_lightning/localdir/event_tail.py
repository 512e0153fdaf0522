"""The events of a directory from the first on, each once, as they are appended.

The open file is kept: when it is renamed because it is full, its last lines are read before those
of the new one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.file_limits import LINE, LINES_BYTES
from bt_lightning.localdir.event_log import event_of
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.localdir.small_files import read_lines
from bt_lightning.log_kinds import EVENTS
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PIECE: Final = 1024 * 1024


class EventTail:
    """A reader of the event log of `root`; one thread uses it."""

    def __init__(self, root: Path) -> None:
        self._file = root / DOT_DIR / EVENTS.file
        self._older = root / DOT_DIR / EVENTS.older
        self._descriptor: int | None = None
        self._at = 0
        self._begun = b""
        """The first bytes of a line whose end is not written yet."""
        self._first = True

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the events since the last call; of a file of more than 16 MiB its last 16 MiB.

        Raises:
            OSError: the disk refused.
            CheckpointCorruptError: the log is no regular file.
        """
        if self._first:
            self._first = False
            yield from self._read_older()
        if self._descriptor is None and not self._open():
            return
        renamed = self._is_renamed()  # looked at first: what comes before the look is read here
        yield from self._read_new()
        if renamed:
            self.close()
            if self._open():
                yield from self._read_new()

    def close(self) -> None:
        """Close the file; `read` opens the one of that time."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._begun = None, b""

    def _read_older(self) -> Iterator[dict[str, Any]]:
        if self._older.is_file():
            yield from filter(None, map(event_of, read_lines(self._older)))

    def _open(self) -> bool:
        try:
            self._descriptor = open_regular(self._file)
        except FileNotFoundError:
            return False
        self._at = max(0, os.fstat(self._descriptor).st_size - LINES_BYTES)
        return True

    def _is_renamed(self) -> bool:
        assert self._descriptor is not None
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except FileNotFoundError:
            return True

    def _read_new(self) -> Iterator[dict[str, Any]]:
        assert self._descriptor is not None
        if os.fstat(self._descriptor).st_size < self._at:  # somebody emptied it
            self._at, self._begun = 0, b""
        while piece := os.pread(self._descriptor, _PIECE, self._at):
            self._at += len(piece)
            *lines, self._begun = (self._begun + piece).split(b"\n")
            if len(self._begun) > LINE.size:
                self._begun = b""  # no event of ours; its rest is no event either
            for line in lines:
                if (event := event_of(line)) is not None:
                    yield event


def events_size(root: Path) -> tuple[int, int]:
    """Inode and size of the event log: they differ once something was appended. Cheap."""
    try:
        status = (root / DOT_DIR / EVENTS.file).stat()
    except OSError:
        return (0, 0)
    return (status.st_ino, status.st_size)
