"""What the clients of `transfer.py` share."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
PART = 32 * MIB
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23


class Bytes:
    """What is sent, and a path under which a client that needs a file can open it.

    A file is mapped by the client that wants it so, on its own time.
    """

    def __init__(self, path: str, descriptor: int, size: int, *, in_memory: bool) -> None:
        self.path, self.size, self.in_memory = path, size, in_memory
        self.descriptor = descriptor

    @functools.cached_property
    def mapping(self) -> mmap.mmap:
        """All bytes, read in at once where the system can."""
        made = mmap.mmap(self.descriptor, self.size, prot=mmap.PROT_READ)
        with contextlib.suppress(OSError):  # before Linux 5.14
            made.madvise(MADV_POPULATE_READ)
        return made

    @functools.cached_property
    def view(self) -> memoryview:
        return memoryview(self.mapping)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield Bytes(str(path), descriptor, os.fstat(descriptor).st_size, in_memory=False)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def preallocated(path: Path, size: int) -> Iterator[int]:
    """A new file with its blocks: writing into holes from several threads is half as fast."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        yield descriptor
    finally:
        os.close(descriptor)


def memory_of(process: int | str, what: str) -> int:
    """Bytes, from /proc/PID/status; 0 if the process is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{what}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
