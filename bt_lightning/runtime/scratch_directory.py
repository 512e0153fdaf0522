"""The scratch directory of a job, deleted at its end, also after SIGKILL."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import xxhash

from bt_lightning.localdir.file_locks import try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PREFIX: Final = "bt-scratch-"
_BASE: Final = "BT_SCRATCH_DIR"


@contextlib.contextmanager
def scratch_directory(
    inherited: Mapping[str, str], root: Path | None
) -> Iterator[tuple[Path, int]]:
    """Yield a new directory, below `BT_SCRATCH_DIR` if that is set, and a descriptor to inherit.

    The descriptor holds an exclusive `flock`: the directory lives as long as any process has it.
    Called by the runner that holds the lock of `root`, the job's checkpoint directory. Directories
    of an earlier, killed runner of `root` are deleted first; only the holder of `root` makes them.
    """
    base = inherited.get(_BASE) or None
    if base is not None:
        Path(base).mkdir(parents=True, exist_ok=True)
    prefix = _PREFIX
    if root is not None:
        prefix += xxhash.xxh3_64_hexdigest(f"{socket.gethostname()}\n{root}".encode()) + "-"
        _sweep(Path(base or tempfile.gettempdir()), prefix)
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try_lock(descriptor)
        yield path, descriptor
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _sweep(base: Path, prefix: str) -> None:
    """Delete directories that no process holds; the base may be writable by every user."""
    for path in base.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and try_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
