"""Walk a directory tree breadth first, in bounded memory and time, whatever lies there.

The entries of a folder are never all in memory: there may be millions.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import DirectoryUnusableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_ENTRIES: Final = 1_000_000
"""Limit for one folder."""
MOST_FOLDERS: Final = 100_000
"""Limit for the whole tree."""

_GONE: Final = (FileNotFoundError, NotADirectoryError)


def walk(
    root: str,
    leave: Callable[[str], bool],
    left_out: Callable[[str, OSError], None],
    see: Callable[[os.DirEntry[str]], None] | None = None,
) -> None:
    """Walk `root` and the folders below it; a folder that vanishes meanwhile counts as empty.

    `leave` is called with each folder, for a whole level before any of its folders is listed; a
    folder for which it returns true is not entered. `see` is called with each entry that is no
    folder. Symbolic links are not followed, and folders whose names begin with a dot are skipped.
    `left_out` is called with a folder that cannot be read or exceeds a limit; what was found in it
    until then counts.

    Raises:
        OSError: `root` cannot be read, or exceeds a limit.
    """
    level, count = [root], 0
    while level:
        entered, inner = [], list[str]()
        for folder in level:
            with _tolerant(folder, root, left_out):
                if not leave(folder):
                    entered.append(folder)
        for folder in entered:
            if count > MOST_FOLDERS:
                break
            with _tolerant(folder, root, left_out):
                for entry in entries(folder):
                    if not entry.is_dir(follow_symlinks=False):
                        if see is not None:
                            see(entry)
                    elif not entry.name.startswith("."):
                        count += 1
                        check_count(folder, count, MOST_FOLDERS, "folders")
                        inner.append(entry.path)
        level = sorted(inner)


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of `folder`.

    Raises:
        DirectoryUnusableError: there are more than `MOST_ENTRIES`; raised after that many.
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as listed:
        for count, entry in enumerate(listed, 1):
            check_count(folder, count, MOST_ENTRIES, "entries")
            yield entry


def check_count(folder: str, count: int, most: int, what: str) -> None:
    """Raise `DirectoryUnusableError` if `count` is more than `most`."""
    if count > most:
        msg = f"{folder} has more than {most:,} {what}: move what does not belong there elsewhere"
        raise DirectoryUnusableError(msg)


@contextlib.contextmanager
def _tolerant(folder: str, root: str, left_out: Callable[[str, OSError], None]) -> Iterator[None]:
    try:
        yield
    except _GONE:
        pass
    except OSError as error:
        if folder == root:
            raise
        left_out(folder, error)
