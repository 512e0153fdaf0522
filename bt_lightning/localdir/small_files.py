"""Small files of ours, in directories where anybody may have put anything under their names.

What is read is a regular file within bounds. What is written takes the place of whatever has the
name, and never goes through a link.
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
        CheckpointCorruptError: it is no regular file, or larger than `bounds` say; a `ValueError`.
        OSError: there is none, or the disk refused.
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
        bounds.check_size(len(data))  # it may have grown
    finally:
        os.close(descriptor)
    return data


def read_json(path: Path, bounds: Bounds) -> Any:
    """The value of the small JSON file `path`; raises as `read_small_file`."""
    return parse_json(read_small_file(path, bounds), bounds)


def read_lines(path: Path, start: int = 0, most: int = LINES_BYTES) -> Iterator[bytes]:
    """Yield the lines of `path` that begin at byte `start` or later, of its last `most` bytes.

    Lines that are longer than `LINE` allows are left out, and so is what grows beyond `most`.

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
    """Put a file with `data` in the place of whatever file has the name `final`, whole.

    Its folder is made if need be. One process at a time writes to one `final`, unless each names
    its own `part`.

    Raises:
        OSError: the disk refused; what was there is untouched.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(part or f".{final.name}.part")
    draft.unlink(missing_ok=True)  # of a process that was killed, or anybody's
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
