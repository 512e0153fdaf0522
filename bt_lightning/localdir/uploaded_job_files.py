"""Which loose files are in the store, and as of which moment: a restart does not send them again.

Lines are added to a file of the directory when their objects are durable; what is lost of it, or
cannot be read, is sent once more.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.file_limits import LINE, parse_json
from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.find_job_files import MOST_FILES, Stamp
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.localdir.small_files import read_lines, replace_small

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FIELDS = len(Stamp._fields)
_MOST_BYTES = 2 * MOST_FILES * 256


class UploadedJobFiles:
    """Path -> stamp of the bytes that the store has. One thread's."""

    def __init__(self, root: Path, place: str) -> None:
        """`place` names the part of the store that is meant."""
        name = f"files-{xxhash.xxh3_128_hexdigest(place.encode())}.jsonl"
        self._file = root / DOT_DIR / "uploads" / name
        self._stamps, lines = _read(self._file)
        if lines > 2 * len(self._stamps) + 100:
            self.keep(self._stamps)

    def __contains__(self, item: tuple[str, Stamp]) -> bool:
        """Whether the store has the file as it is by that stamp."""
        return self._stamps.get(item[0]) == item[1]

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, files: Iterable[tuple[str, Stamp]]) -> None:
        """The store has these. Lost with the power at worst: then they are sent again."""
        added = dict(files)
        self._stamps |= added
        with contextlib.suppress(OSError):  # a full disk: as above
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_own(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "wb") as stream:
                # a line that a kill cut short ends here, and costs nobody else's
                stream.write(b"\n" + _lines(added))

    def keep_held(self, sizes: dict[str, int]) -> None:
        """Forget what a store that has files of these `sizes` has not."""
        kept = {path: s for path, s in self._stamps.items() if sizes.get(path) == s.size}
        if len(kept) != len(self._stamps):
            self.keep(kept)

    def keep(self, stamps: dict[str, Stamp]) -> None:
        """Remember these only. Durable: what is forgotten must not come back with a crash."""
        self._stamps = dict(stamps)
        try:
            replace_small(self._file, _lines(self._stamps))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def _lines(stamps: dict[str, Stamp]) -> bytes:
    return "".join(json.dumps([path, *stamp]) + "\n" for path, stamp in stamps.items()).encode()


def _read(file: Path) -> tuple[dict[str, Stamp], int]:
    """What the file says, and in how many lines."""
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
