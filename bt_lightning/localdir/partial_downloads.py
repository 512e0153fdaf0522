"""Partial downloads: directories that a killed process leaves, and the next one resumes.

A partial directory is named by the digest of what it will become, and owned through a `flock` on
itself, like a temporary directory (`localdir.atomic_directory`). A process that takes one holds a
shared lock on the parent folder; one that publishes or deletes one holds it exclusively. So nobody
takes a directory that is just being moved away.
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

    It stays until it is published or swept. All other ones are deleted first, since the disk may be
    nearly full. If another process owns it, a temporary directory is yielded instead.
    """
    sweep_partials(root, keep=name)
    owned = _take(partials_dir(root), name)
    if owned is None:
        with temporary(root) as built:
            yield built
        return
    path, owner = owned
    try:
        yield path
    finally:
        os.close(owner)


def publish_partial(built: Path, final: Path, root: Path, *, replace: bool = True) -> None:
    """Rename the directory that `partial` yielded, whole and durable by then, to `final`.

    Raises:
        FileExistsError: `final` exists, and `replace` is false.
    """
    with open_directory(built.parent) as gate:
        lock(gate, fcntl.LOCK_EX)
        publish_directory(built, final, root, replace=replace)
        discard(built)  # not there after a rename; after an exchange, the replaced directory


def sweep_partials(root: Path, keep: str | None = None) -> None:
    """Delete the partial directories without an owner, except `keep`; safe beside live ones."""
    if not partials_dir(root).is_dir():
        return
    with open_directory(partials_dir(root)) as gate:
        if not try_lock(gate):
            return  # a process is just taking one: the next sweep deletes the others
        for path in children(partials_dir(root)):
            if path.name != keep and (path.is_symlink() or not path.is_dir() or _is_free(path)):
                discard(path)


def _take(parent: Path, name: str) -> tuple[Path, int] | None:
    """The directory and the descriptor whose lock owns it; None if another process owns it."""
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
        except FileNotFoundError:  # another process has just removed the empty parent
            if not left:
                raise
    raise AssertionError


def _is_free(path: Path) -> bool:
    with open_directory(path) as descriptor:
        return try_lock(descriptor)
