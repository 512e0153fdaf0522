"""Checkpoints that a Trainer without us left in the directory: a training goes on with them."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.checkpoint_formats.results import Whole
from bt_lightning.checkpoint_formats.table import recognize
from bt_lightning.localdir.fit_ledger_file import read_fits
from bt_lightning.localdir.folder_on_disk import stamps_below, view_of_folder
from bt_lightning.session.checkpoint_paths import is_committed
from bt_lightning.session.start_point import OfferedCheckpoint

if TYPE_CHECKING:
    from pathlib import Path

_NAME: Final = re.compile(r"checkpoint-(\d+)")


def stock_folders(folder: Path) -> list[Path]:
    """Folders of a Trainer that have no manifest, whole or not, by their step."""
    if not folder.is_dir():
        return []
    found = [one for one in folder.iterdir() if _NAME.fullmatch(one.name) and not is_committed(one)]
    return sorted(
        (one for one in found if one.is_dir() and not one.is_symlink()),
        key=lambda one: int(one.name.partition("-")[2]),
    )


def stock_offer(root: Path, form: str) -> OfferedCheckpoint:
    """Rank 0: the newest of them that is whole, for a session to choose among others.

    None of a job with several trainings: nothing says which one it is of.
    """
    if len(read_fits(root)) <= 1:
        for folder in reversed(stock_folders(root)):
            whole = _whole(folder)
            if whole is not None and whole.format == form and whole.resumable:
                return OfferedCheckpoint(str(folder), load=partial(_facts, whole), format=form)
    return OfferedCheckpoint(format=form)


def _facts(whole: Whole, *_: object, **__: object) -> dict[str, Any]:
    """What a session asks of a checkpoint that it did not write."""
    return {"global_step": whole.step, "optimizer_states": []}


def _whole(folder: Path) -> Whole | None:
    try:
        found = recognize(view_of_folder(folder, stamps_below(folder), settled=False))
    except OSError:
        return None  # it changes or goes, or cannot be read: not one to rely on
    return found if isinstance(found, Whole) else None
