"""Images of saves that a worker holds in memory when its trainer was killed.

`.bt_lightning/held/<pid>.json` says which: the process and when it started, its descriptor of the
memory, and where the file of each digest begins. The same user opens the memory through `/proc`.
It is a cache: what lies there counts only where it has the digests that a manifest names. Whoever
deletes the record lets the worker end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning import file_limits
from bt_lightning.file_limits import parse_json
from bt_lightning.json_values import count_of, typed
from bt_lightning.localdir.atomic_directory import children
from bt_lightning.localdir.no_symlinks import folder, walk_no_symlinks
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.path_layout import DOT_DIR, is_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

MEMORY_NAME: Final = "bt_lightning arena"
"""Of the memfd: nothing else is opened."""
_PROC: Final = Path("/proc")
_RECORD: Final = re.compile(r"\d+\.json|\.\d+\.json\.part", re.ASCII)
"""Name of a record, or of what a worker left that was killed while it wrote one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldImage:
    """Where the files of a save lie in the memory of a process."""

    pid: int
    started: int
    """When the process started, in clock ticks since the boot: pids are used again."""
    descriptor: int
    checkpoint_id: str
    until: float
    """When the process ends, in seconds of the epoch."""
    files: Mapping[str, tuple[int, int]]
    """XXH3-128 of each file -> offset of its first byte, and its size in bytes."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files.values())


def held_dir(root: Path) -> Path:
    """The folder of the records."""
    return root / DOT_DIR / "held"


def offer_image(root: Path, image: HeldImage) -> Path:
    """Say that this process holds an image; return the record. Called in the worker.

    Raises:
        OSError: the disk refused.
    """
    record = held_dir(root) / f"{image.pid}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    replace_small(record, json.dumps(asdict(image)).encode(), durable=False)
    return record


def started_at(pid: int) -> int:
    """When a process started, in clock ticks since the boot.

    Raises `OSError` or `ValueError` if there is none.
    """
    status = (_PROC / str(pid) / "stat").read_bytes()
    return int(status[status.rindex(b")") :].split()[20])


def held_images(root: Path) -> list[HeldImage]:
    """The images that processes of this machine hold for the runs of a directory."""
    found = []
    with contextlib.suppress(OSError):
        for record in children(held_dir(root)):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                image = _read(record)
                if image.started == started_at(image.pid):
                    found.append(image)
    return found


def open_held_image(image: HeldImage) -> int:
    """A descriptor of the memory, which the caller closes.

    Raises:
        OSError: the process has ended, or is another user's.
        ValueError: it holds something else.
    """
    link = _PROC / str(image.pid) / "fd" / str(image.descriptor)
    if image.started != started_at(image.pid) or MEMORY_NAME not in str(link.readlink()):
        raise ValueError(link)
    descriptor = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(link)
    return descriptor


def release_held_images(root: Path) -> None:
    """Let the workers of earlier runs end, and free their memory; the disk may refuse it.

    Nothing but records is deleted, and nothing through a link.
    """
    place = held_dir(root).relative_to(root).as_posix()
    with contextlib.suppress(OSError), folder(root, place) as held:
        for found, _ in walk_no_symlinks(root, place):
            parent, _, name = found.rpartition("/")
            if parent == place and _RECORD.fullmatch(name):
                os.unlink(name, dir_fd=held)


def _read(record: Path) -> HeldImage:
    found = parse_json(read_small_file(record, file_limits.LINE), file_limits.LINE)
    files = {key: (count_of(at), count_of(size)) for key, (at, size) in found["files"].items()}
    numbers = {name: count_of(found[name]) for name in ("pid", "started", "descriptor")}
    until, name = typed(float, found["until"]), typed(str, found["checkpoint_id"])
    if not math.isfinite(until) or not all(map(is_digest, files)):
        raise ValueError(record)
    return HeldImage(checkpoint_id=name, until=until, files=files, **numbers)
