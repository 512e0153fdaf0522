"""Resolves `ckpt_path="last"` and `"best"` in our directory, in a process that has saved nothing.

Lightning resolves them before any callback is set up, by `.ckpt` files or by what `ModelCheckpoint`
saved in this process. It would find nothing and evaluate the model as it is.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat_patched_functions import patch_ckpt_path
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.model_checkpoint_paths import writers
from bt_lightning.lightning_plugin.trainer_checks import checkpoint_root
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.newest_in_store import newest_in_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint

log = logging.getLogger(__name__)


def resolve_last_or_best(trainer: Trainer, name: str) -> str | None:
    """The path of `"last"` or `"best"`; None to let Lightning resolve it. Called on every rank.

    Both are of one fit: the last one of this Trainer, else that of `fit_name`, else the one that
    saved last. `"last"` is the newest checkpoint of that name, or the newest of all. `"best"` has
    the best value of the first `ModelCheckpoint`'s metric in its manifest; without a metric, the
    newest.
    """
    ours = [c for c in trainer.callbacks if c.state_key == "BTLightning"]  # type: ignore[attr-defined]
    if not ours:
        return None
    ours.sort(key=lambda callback: callback.automatic)
    root = checkpoint_root(ours[0]._options.dir, trainer)
    everyone = trainer.callbacks  # type: ignore[attr-defined]
    callbacks = [everyone[index] for index in writers(trainer, root)]
    if not callbacks or not root.is_dir():
        return None
    everything = list_committed(root, foreign=False).of_format(None).found
    committed = {one.path: one for one in ours[0]._fits.of_one(trainer, everything)}
    if name == "last":
        path = _last(root, callbacks, committed)
    else:
        path = _best(trainer, root, callbacks, committed)
    if path is None and name == "last":
        stored = newest_in_store(root) if not everything else None
        path = next(iter(committed), None) or (
            root / stored.checkpoint if stored is not None else None
        )
    if path is not None:
        log.info("ckpt_path=%r is %s", name, path)
    return None if path is None else str(path)


def _last(
    root: Path, callbacks: list[ModelCheckpoint], committed: dict[Path, LocalCheckpoint]
) -> Path | None:
    """The newest checkpoint with the name `last`, or with a link of that name."""
    called_last = []
    for callback in callbacks:
        folder = Path(callback.dirpath or root)
        for path in folder.iterdir() if folder.is_dir() else ():
            place = path.resolve()
            if re.match(callback.CHECKPOINT_NAME_LAST, path.name) and place in committed:
                called_last.append(committed[place])
    newest = max(called_last, key=lambda one: one.manifest.order, default=None)
    return newest.path if newest is not None else None


def _best(
    trainer: Trainer,
    root: Path,
    callbacks: list[ModelCheckpoint],
    committed: dict[Path, LocalCheckpoint],
) -> Path | None:
    callback: Any = trainer.checkpoint_callback
    if callback not in callbacks or callback.best_model_path:
        return None  # it saves elsewhere, or has saved in this process
    folder = Path(callback.dirpath or root).resolve()
    mine = [
        one
        for one in committed.values()  # newest first: of equal values, the newest wins
        if folder in one.path.parents
        and "interim" not in one.manifest.origin
        and not re.match(callback.CHECKPOINT_NAME_LAST, one.path.name)
    ]
    if callback.monitor is None:
        return mine[0].path if mine else None
    sign = 1 if callback.mode == "min" else -1
    ranked = [(sign * one.manifest.metrics.get(callback.monitor, math.nan), one) for one in mine]
    ranked = [(value, one) for value, one in ranked if not math.isnan(value)]
    return min(ranked, key=lambda pair: pair[0])[1].path if ranked else None


def restore_last_model_path(trainer: Trainer) -> None:
    """Called on every rank when the state is restored: keep using the interrupted run's `last`.

    The run may resume from a checkpoint that was saved before the first `last`. Its
    `ModelCheckpoint` would treat an existing `last` as another's, and never update or remove it.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for index, path in (
        ranks_of(trainer).from_zero(lambda: dict(_missing_last_paths(trainer))).items()
    ):
        callbacks[index].last_model_path = path


def _missing_last_paths(trainer: Trainer) -> Iterator[tuple[int, str]]:
    """(index of the callback, path) of each `last` that its `ModelCheckpoint` does not know."""
    resumed = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path is not None else Path()
    for index, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
        ours = isinstance(callback, model_checkpoint_classes()) and not callback.FILE_EXTENSION
        if not ours or not callback.save_last or callback.last_model_path:
            continue
        folder = Path(callback.dirpath)
        path = folder / callback.CHECKPOINT_NAME_LAST  # a name with metric fields is not found
        if folder.resolve() in resumed.parents and path.exists():
            yield index, str(path)


patch_ckpt_path(resolve_last_or_best)
