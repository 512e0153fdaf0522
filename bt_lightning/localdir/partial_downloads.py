"""Downloads that a killed process leaves behind, and that the next one goes on with.

A partial directory is named by what it is to become, so that nobody can take it for something else,
and owned through a `flock` on itself, as a temporary directory is (`localdir.atomic_directory`).
Their parent's lock is the gate: held shared to take one, and alone to publish or to delete one, so
that nobody takes a directory that is just being moved away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from bt_lightning.localdir.atomic_directory import (
    children,
    discard,
    partials_dir,
    publish_directory,
    temporary,
)
from bt_lightning.localdir.file_locks import lock, try_lock
from bt_lightning.localdir.fsync import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TRIES = 8


@contextlib.contextmanager
def partial(root: Path, name: str) -> Iterator[Path]:
    """Yield the partial directory `name` of `root`, owned, with what an earlier process left in it.

    It stays until it is published or swept. All others go first: there is one resume at a time,
    and the disk may be short. If another process is just filling it, a temporary one is yielded.
    """
    sweep_partials(root, keep=name)
    taken = _taken(partials_dir(root), name)
    if taken is None:
        with temporary(root) as built:
            yield built
        return
    path, owner = taken
    try:
        yield path
    finally:
        os.close(owner)


def publish_partial(built: Path, final: Path, root: Path, *, replace: bool = True) -> None:
    """Give the directory that `partial` yielded, now whole and durable, its final name.

    Raises:
        FileExistsError: something has that name, and is not to be replaced.
    """
    with open_directory(built.parent) as gate:
        lock(gate, fcntl.LOCK_EX)
        publish_directory(built, final, root, replace=replace)
        discard(built)  # gone after a rename; after an exchange, what was replaced


def sweep_partials(root: Path, keep: str | None = None) -> None:
    """Delete the partial directories that no process owns, except `keep`; safe beside live ones."""
    if not partials_dir(root).is_dir():
        return
    with open_directory(partials_dir(root)) as gate:
        if not try_lock(gate):
            return  # somebody is just taking one: the next sweep comes
        for path in children(partials_dir(root)):
            if path.name != keep and (path.is_symlink() or not path.is_dir() or _is_free(path)):
                discard(path)


def _taken(parent: Path, name: str) -> tuple[Path, int] | None:
    """The directory and the descriptor whose lock owns it; None if another process does."""
    path = parent / name
    for left in reversed(range(_TRIES)):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with open_directory(parent) as gate:
                lock(gate, fcntl.LOCK_SH)
                path.mkdir(exist_ok=True)
                owner = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                if try_lock(owner):
                    return path, owner
                os.close(owner)
                return None
        except FileNotFoundError:  # another process has just tidied the empty parent away
            if not left:
                raise
    raise AssertionError


def _is_free(path: Path) -> bool:
    with open_directory(path) as descriptor:
        return try_lock(descriptor)
