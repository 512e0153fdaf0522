"""What the callback checks before it believes a Trainer, and small readings of one."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from bt_lightning.errors import (
    InvalidSettingError,
)
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.session.checkpoint_paths import is_url
from bt_lightning.store.interface import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

log = logging.getLogger(__name__)

T = TypeVar("T")
_FIELD = re.compile(r"\{([^}:]*)[^}]*\}")
"""What stands for a metric in a name."""


def checkpoint_root(chosen: str | os.PathLike[str] | None, trainer: Trainer) -> Path:
    """The absolute directory of the checkpoints."""
    chosen = os.fspath(chosen or f"{trainer.default_root_dir}/bt_checkpoints")
    if "://" in chosen and not chosen.startswith("file://"):
        msg = (
            f"dir is {redact(chosen)!r}, a URL: checkpoints are written to a local directory"
            " first. Give dir (or BT_CHECKPOINT_DIR) a path, and the URL as store (or"
            " BT_STORE_URL)"
        )
        raise InvalidSettingError(msg)
    return Path(chosen.removeprefix("file://")).expanduser().resolve()


def refuse_twins(trainer: Trainer) -> None:
    """Two would both wrap the Trainer, and each lose half of what happens."""
    found = [c for c in trainer.callbacks if c.state_key == "BTLightning"]  # type: ignore[attr-defined]
    twins = [c for c in found if not c.implied]  # those give way by themselves
    if len(twins) > 1:
        msg = f"the Trainer has {len(twins)} BTLightning callbacks, expected one"
        raise InvalidSettingError(msg)


def refuse_names(trainer: Trainer, root: Path) -> None:
    """A name that is no checkpoint's makes a plain file, which nobody publishes or resumes from.

    All ranks, at the start of a fit, once every `ModelCheckpoint` has its directory.
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
    """Metrics that are one number; a tensor on a device is read, which waits for that device."""
    found = {}
    for name, value in metrics.items():
        if (isinstance(value, torch.Tensor) and value.numel() == 1) or isinstance(
            value, int | float
        ):
            found[name] = float(value)
    return found


def warn_of_no_saves(trainer: Trainer, adopted: Sequence[ModelCheckpoint]) -> None:
    """Say that no save will be one to resume from; on rank 0, at the start of a fit."""
    if not trainer.is_global_zero:
        return
    if adopted:
        log.warning(
            "every ModelCheckpoint has save_weights_only=True: no restart can go on from what they"
            " save. Add one without it, or use BTLightning(interval='auto')"
        )
        return
    log.warning(
        "BTLightning is on, but no ModelCheckpoint writes to its directory: nothing will be"
        " saved unless the script calls trainer.save_checkpoint (enable_checkpointing=False,"
        " or every ModelCheckpoint has a dirpath elsewhere)"
    )
