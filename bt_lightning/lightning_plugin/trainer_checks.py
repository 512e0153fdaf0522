"""Checks a Trainer's configuration before a fit, and reads its directory and metrics."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from bt_lightning.errors import (
    InvalidSettingError,
)
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.session.checkpoint_paths import DEFAULT_ROOT, absolute_root, is_url

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)

T = TypeVar("T")
_FIELD = re.compile(r"\{([^}:]*)[^}]*\}")
"""A field for a metric in a file name."""


def checkpoint_root(chosen: str | os.PathLike[str] | None, trainer: Trainer) -> Path:
    """The absolute checkpoint directory, for `chosen` (the option `dir`) or the Trainer's default.

    Raises:
        InvalidSettingError: `chosen` is a URL.
    """
    return absolute_root(chosen or f"{trainer.default_root_dir}/{DEFAULT_ROOT}")


def refuse_duplicates(trainer: Trainer) -> None:
    """Raise `InvalidSettingError` for a Trainer with two `BTLightning`, which would interfere."""
    ours = [c for c in trainer.callbacks if c.state_key == "BTLightning"]  # type: ignore[attr-defined]
    duplicates = [c for c in ours if not c.automatic]  # those remove themselves
    if len(duplicates) > 1:
        msg = f"the Trainer has {len(duplicates)} BTLightning callbacks, expected one"
        raise InvalidSettingError(msg)


def refuse_names(trainer: Trainer, root: Path) -> None:
    """Raise `InvalidSettingError` for names that are no valid checkpoint ids.

    Such a checkpoint would be a plain file that is not published and that no run resumes from.
    Called on rank 0 at the start of a fit, once every `ModelCheckpoint` has its directory.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, model_checkpoint_classes()) or is_url(callback.dirpath or ""):
            continue
        place = Path(callback.dirpath or root).resolve()
        if not place.is_relative_to(root):
            continue
        names = [callback.filename or ""]
        if callback.save_last:
            names.append(callback.CHECKPOINT_NAME_LAST)
        for name in names:
            spread = r"\1=0" if callback.auto_insert_metric_name else "0"
            path = place / f"{_FIELD.sub(spread, name) or '0'}{callback.FILE_EXTENSION}"
            if not _is_name(path.parent.resolve() / path.name, root):
                msg = (
                    f"ModelCheckpoint(dirpath={str(callback.dirpath)!r}, filename={name!r}) would"
                    f" save {path}, which cannot be a checkpoint of {root}: no part of its name"
                    " may begin with a dot, nor lead out of that directory. Use a name such as"
                    " filename='checkpoint-{step}', or a dirpath elsewhere for files that nobody"
                    " publishes and no run resumes from by itself"
                )
                raise InvalidSettingError(msg)


def _is_name(path: Path, root: Path) -> bool:
    try:
        check_checkpoint_id(path.relative_to(root).as_posix())
    except ValueError:  # InvalidSettingError is one
        return False
    return True


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are single numbers; reading a tensor waits for its device."""
    ours = {}
    for name, value in metrics.items():
        if (isinstance(value, torch.Tensor) and value.numel() == 1) or isinstance(
            value, int | float
        ):
            ours[name] = float(value)
    return ours


def as_logged(value: float) -> torch.Tensor:
    """A metric as `log` stores it, in a precision that keeps its value."""
    single = torch.tensor(value, dtype=torch.float32)
    return single if single.item() == value else torch.tensor(value, dtype=torch.float64)


def warn_of_no_saves(trainer: Trainer, writers: Sequence[ModelCheckpoint]) -> None:
    """Warn at the start of a fit, on rank 0, that no `ModelCheckpoint` saves a resumable state."""
    if not trainer.is_global_zero:
        return
    if writers:
        log.warning(
            "every ModelCheckpoint has save_weights_only=True: no restart can go on from what they"
            " save, before the fit ends. Add one without it, or use BTLightning(interval='auto')"
        )
        return
    log.warning(
        "BTLightning is on, but no ModelCheckpoint writes to its directory: nothing will be"
        " saved before the fit ends unless the script calls trainer.save_checkpoint"
        " (enable_checkpointing=False, or every ModelCheckpoint has a dirpath elsewhere)."
        " BTLightning(interval='auto') saves meanwhile"
    )
