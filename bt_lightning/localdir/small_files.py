"""Read and replace this package's small files, in directories where others may write too.

Only regular files within bounds are read. A write replaces whatever has the name, and never goes
through a link.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bt_lightning.file_limits import LINE, LINES_BYTES, parse_json
from bt_lightning.localdir.fsync import sync_directory, write_all
from bt_lightning.localdir.safe_open import QUIET, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.file_limits import Bounds


def read_small_file(path: Path, bounds: Bounds) -> bytes:
    """The bytes of the small file `path`.

    Raises:
        CheckpointCorruptError: it is no regular file, or larger than `bounds`; a `ValueError`.
        OSError: there is no file, or the disk refused.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        bounds.check_size(size)
        parts, left = [], bounds.size + 1
        while left and (part := os.read(descriptor, min(left, max(size + 1, 4096)))):
            parts.append(part)
            left -= len(part)
        data = b"".join(parts)
        bounds.check_size(len(data))  # the file may have grown
    finally:
        os.close(descriptor)
    return data


def read_json(path: Path, bounds: Bounds) -> Any:
    """The value of the small JSON file `path`; raises as `read_small_file`."""
    return parse_json(read_small_file(path, bounds), bounds)


def read_lines(path: Path, start: int = 0, most: int = LINES_BYTES) -> Iterator[bytes]:
    """Yield the lines of `path` from byte `start` on, within its last `most` bytes.

    Lines longer than `LINE.size` are left out, and so is what is appended beyond `most` bytes.

    Raises:
        CheckpointCorruptError, OSError: as `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        begin = max(start if start <= size else 0, size - most)
        stream.seek(begin)
        left, whole = most, begin in {0, start}
        while left > 0 and (line := stream.readline(min(left, LINE.size))):
            left -= len(line)
            ends = line.endswith(b"\n")
            if whole and (ends or len(line) < LINE.size):
                yield line
            whole = ends


def replace_small(final: Path, data: bytes, *, durable: bool = True, part: str = "") -> None:
    """Write `data` to a new file, and rename it to `final`, in place of an existing file.

    The folder is created if needed. Only one process at a time may write one `final`, unless each
    has a temporary name `part` of its own.

    Raises:
        OSError: the disk refused; an existing file is untouched.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(part or f".{final.name}.part")
    draft.unlink(missing_ok=True)  # left by a killed process, or put there by another user
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | QUIET, 0o666)
    try:
        try:
            write_all(descriptor, memoryview(data))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(final)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(final.parent)
