"""Handles `save_last="link"` on file systems without symbolic links by saving a second time."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.lightning_plugin.trainer_ranks import ranks_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)


class LinkOrSave:
    """Replaces `_link_checkpoint` of one `ModelCheckpoint`; called on every rank.

    Lightning would copy a file that it cannot link to, but a checkpoint is a directory here.
    """

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback
        self._links: bool | None = None
        """Whether the file system has symbolic links; tested at the first link."""

    def __call__(self, trainer: Trainer, filepath: str, linkpath: str) -> None:
        """Link `linkpath` to the new checkpoint at `filepath`, or save it there again."""
        callback = self._callback
        if self._links is None:
            refusal = ranks_of(trainer).from_zero(lambda: _symlink_error(Path(linkpath).parent))
            self._links = refusal is None
            if refusal is not None and trainer.is_global_zero:
                log.warning(
                    "save_last='link': %s has no symbolic links (%s), so the newest checkpoint is"
                    " saved a second time, as with save_last=True",
                    Path(linkpath).parent,
                    refusal,
                )
        # possible before Lightning 2.6
        is_same = Path(filepath).absolute() == Path(linkpath).absolute()
        if self._links and not is_same:
            type(callback)._link_checkpoint(trainer, filepath, linkpath)
        else:
            callback._save_checkpoint(trainer, linkpath)


def _symlink_error(folder: Path) -> str | None:
    """The error of the system when a link is created in `folder`; None if it works."""
    trial = folder / f".{uuid.uuid4().hex}.link"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.symlink_to("nowhere")
        trial.unlink()
    except OSError as error:
        return error.strerror or os.strerror(error.errno or 0)
    return None
