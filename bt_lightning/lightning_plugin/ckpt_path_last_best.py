"""What `ckpt_path="last"` and `"best"` mean in our directory, in a process that saved nothing.

Lightning looks before any callback is set up, for files that end with `.ckpt`, or asks its
`ModelCheckpoint` what it saved: it finds nothing and evaluates the model as it is.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat_patched_functions import teach_words
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


def find_word(trainer: Trainer, word: str) -> str | None:
    """The path that `"last"` or `"best"` means; None where Lightning is to look. Every rank.

    `"last"` is the newest that is called so, else the newest of all; `"best"` that with the best
    value of the first `ModelCheckpoint`'s metric in its manifest, else, with no metric, the newest.
    """
    ours = [c for c in trainer.callbacks if c.state_key == "BTLightning"]  # type: ignore[attr-defined]
    if not ours:
        return None
    ours.sort(key=lambda callback: callback.implied)
    root = checkpoint_root(ours[0]._options.dir, trainer)
    everyone = trainer.callbacks  # type: ignore[attr-defined]
    saving = [everyone[index] for index in writers(trainer, root)]
    if not saving or not root.is_dir():
        return None
    found = {one.path: one for one in list_committed(root)[0]}
    path = _last(root, saving, found) if word == "last" else _best(trainer, root, saving, found)
    if path is None and word == "last":
        away = newest_in_store(root)
        path = next(iter(found), None) or (root / away.checkpoint if away is not None else None)
    if path is not None:
        log.info("ckpt_path=%r is %s", word, path)
    return None if path is None else str(path)


def _last(
    root: Path, saving: list[ModelCheckpoint], found: dict[Path, LocalCheckpoint]
) -> Path | None:
    """The newest that is called `last`, by itself or by a link."""
    named = []
    for callback in saving:
        folder = Path(callback.dirpath or root)
        for path in folder.iterdir() if folder.is_dir() else ():
            place = path.resolve()
            if re.match(callback.CHECKPOINT_NAME_LAST, path.name) and place in found:
                named.append(found[place])
    newest = max(named, key=lambda one: one.manifest.order, default=None)
    return newest.path if newest is not None else None


def _best(
    trainer: Trainer,
    root: Path,
    saving: list[ModelCheckpoint],
    found: dict[Path, LocalCheckpoint],
) -> Path | None:
    callback: Any = trainer.checkpoint_callback
    if callback not in saving or callback.best_model_path:
        return None  # it has saved by itself, or is another's
    folder = Path(callback.dirpath or root).resolve()
    mine = [
        one
        for one in found.values()  # newest first, which decides between equals
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


def take_up_last(trainer: Trainer) -> None:
    """Every rank, when the state is restored: go on with the `last` of the run that broke off.

    The checkpoint that the run resumed from may have been saved before the first `last` was:
    its `ModelCheckpoint` would take the name for another's, and leave it behind at its step.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for index, path in ranks_of(trainer).from_zero(lambda: dict(_left(trainer))).items():
        callbacks[index].last_model_path = path


def _left(trainer: Trainer) -> Iterator[tuple[int, str]]:
    """Which callbacks would not know the `last` in the directory that was resumed from, and it."""
    resumed = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path is not None else Path()
    for index, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
        ours = isinstance(callback, model_checkpoint_classes()) and not callback.FILE_EXTENSION
        if not ours or not callback.save_last or callback.last_model_path:
            continue
        folder = Path(callback.dirpath)
        path = folder / callback.CHECKPOINT_NAME_LAST  # with fields in it, it is not found
        if folder.resolve() in resumed.parents and path.exists():
            yield index, str(path)


teach_words(find_word)
