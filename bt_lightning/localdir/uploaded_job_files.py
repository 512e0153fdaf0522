"""Record which job files are in the store, and in which state: a restart does not resend them.

A line is appended when the file's object is durable; a file whose line is lost or damaged is sent
again.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.file_limits import LINE, parse_json
from bt_lightning.localdir.find_job_files import MOST_FILES, Stamp
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.localdir.small_files import read_lines, replace_small
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FIELDS = len(Stamp._fields)
_MOST_BYTES = 2 * MOST_FILES * 256


class UploadedJobFiles:
    """Path -> stamp of the state that the store has. Used by one thread."""

    def __init__(self, root: Path, prefix_url: str) -> None:
        """`root` is the checkpoint directory, `prefix_url` the store and prefix."""
        name = f"files-{xxhash.xxh3_128_hexdigest(prefix_url.encode())}.jsonl"
        self._file = root / DOT_DIR / "uploads" / name
        self._stamps, lines = _read(self._file)
        if lines > 2 * len(self._stamps) + 100:
            self.keep(self._stamps)

    def __contains__(self, item: tuple[str, Stamp]) -> bool:
        """Whether the store has the file (path, stamp) in that state."""
        return self._stamps.get(item[0]) == item[1]

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, files: Iterable[tuple[str, Stamp]]) -> None:
        """Record that the store has these; not fsynced: a lost line means sending again."""
        added = dict(files)
        self._stamps |= added
        with contextlib.suppress(OSError):  # a full disk: the files are sent again
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_own(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "wb") as stream:
                # the newline ends a line that a kill cut short, so that only that one is lost
                stream.write(b"\n" + _lines(added))

    def keep_held(self, sizes: dict[str, int]) -> None:
        """Forget files that the store does not list with the right size; `sizes` is its listing."""
        kept = {path: s for path, s in self._stamps.items() if sizes.get(path) == s.size}
        if len(kept) != len(self._stamps):
            self.keep(kept)

    def keep(self, stamps: dict[str, Stamp]) -> None:
        """Replace the record, durably: a forgotten file must not come back after a crash."""
        self._stamps = dict(stamps)
        try:
            replace_small(self._file, _lines(self._stamps))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def _lines(stamps: dict[str, Stamp]) -> bytes:
    return "".join(json.dumps([path, *stamp]) + "\n" for path, stamp in stamps.items()).encode()


def _read(file: Path) -> tuple[dict[str, Stamp], int]:
    """The stamps in the file, and the number of its valid lines."""
    stamps: dict[str, Stamp] = {}
    count = 0
    try:
        for line in read_lines(file, most=_MOST_BYTES):
            try:
                path, *numbers = parse_json(line, LINE)
            except (ValueError, TypeError):
                continue  # empty, or torn
            whole = len(numbers) == _FIELDS and all(type(number) is int for number in numbers)
            if isinstance(path, str) and whole:
                stamps[path] = Stamp(*numbers)
                count += 1
            if len(stamps) == MOST_FILES:
                break
    except (OSError, ValueError):
        return {}, 0
    return stamps, count
