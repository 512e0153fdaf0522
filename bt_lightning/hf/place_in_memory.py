"""Where small files of a save are written before they are read back: in memory, not on a disk.

A disk that is busy with the save before would keep the training thread waiting.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

from bt_lightning.localdir.atomic_directory import sweep_temporaries

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of this user's, which is checked
_MOST: Final = 16 << 20
"""Bytes of a save that may be there; what else writes large files does it on the disk."""
_SPARE: Final = 4
"""Times that size must be free."""


def place_in_memory(size: int) -> Path | None:
    """A folder in memory for files of `size` bytes; None if there is none for them.

    What killed processes left there is deleted.
    """
    folder = _MEMORY / f"bt_lightning-{os.getuid()}"
    try:
        if size > _MOST or shutil.disk_usage(_MEMORY).free < _SPARE * _MOST:
            return None
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == stat.S_IRWXU
        if not private or found.st_uid != os.getuid():
            return None  # anybody may make names there
        sweep_temporaries(folder)
    except OSError:
        return None
    return folder
