"""The checkpoint directory that a command means if none is named: `./bt_checkpoints`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.path_layout import DOT_DIR, MANIFEST, slug

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_DIRECTORY: Final = "bt_checkpoints"
"""Where trainings and `bt-lightning run` save by default, in their working directory."""


def default_directory(here: Path, job: str | None) -> tuple[Path | None, int]:
    """The directory that saves lie in below `here`, and how many there are.

    It is `bt_checkpoints` itself (a training's), or a folder in it (a job's, of `run`): that of
    `job`, else the one that changed last. None if there is none.
    """
    root = here / DEFAULT_DIRECTORY
    if job is not None:
        named = root / slug(job)
        return (named, 1) if is_used(named) else (None, 0)
    found = [root] if is_used(root) else []
    try:
        found += [path for path in root.iterdir() if is_used(path)]
    except OSError:
        return None, 0
    return max(found, key=_changed, default=None), len(found)


def is_used(path: Path) -> bool:
    """Whether something saved there: our dot folder, or a committed checkpoint in a folder."""
    try:
        if (path / MANIFEST).exists():  # a checkpoint is no directory of checkpoints
            return False
        return (path / DOT_DIR).is_dir() or any(path.glob(f"*/{MANIFEST}"))
    except OSError:
        return False


def _changed(path: Path) -> float:
    """Seconds of the epoch at which the directory, or the records in it, changed last."""
    times = []
    for one in (path, path / DOT_DIR):
        try:
            times.append(one.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)
