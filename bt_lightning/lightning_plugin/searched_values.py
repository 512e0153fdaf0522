"""Keeps what a search for a learning rate or a batch size found, which no resume may repeat.

`LearningRateFinder` and `BatchSizeFinder` search when a fit starts. At their end they restore a
checkpoint of their own, in place of the training state that the run resumes from; and another
machine, or a trained model, gives another result.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat_tuner
from bt_lightning.lightning_plugin.compat_resume import (
    after_callbacks_restored,
    after_train_start,
    after_training_restored,
)
from bt_lightning.session.checkpoint_writer import EXTRA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

SEARCHED = "searched"
"""Key under which `BTLightning` saves what was found, by the attribute's name."""


def searched_values(trainer: Trainer) -> dict[str, float]:
    """Called at a save: the values of the attributes that callbacks searched for."""
    found = {}
    for callback, _ in compat_tuner.searches(trainer):
        name = compat_tuner.searched_attribute(trainer, callback)
        value = compat_tuner.searched_value(trainer, name) if name is not None else None
        if name is not None and isinstance(value, int | float):
            found[name] = value
    return found


def keep_searched_values(trainer: Trainer, path: str) -> None:
    """Called on every rank when `path` was read: search for nothing until training goes on.

    Later searches, which a subclass begins in an epoch, take place.
    """
    searches = compat_tuner.searches(trainer)
    if not searches:
        return
    for callback, method in searches:
        vars(callback)[method] = _no_search

    def arrange(checkpoint: dict[str, Any]) -> None:
        extra = checkpoint.get(EXTRA)
        saved = extra.get(SEARCHED, {}) if isinstance(extra, dict) else {}
        after_training_restored(trainer, lambda: _restore(trainer, saved, path))
        after_train_start(trainer, lambda: search_again(trainer))

    after_callbacks_restored(trainer, arrange)


def search_again(trainer: Trainer) -> None:
    """Undo `keep_searched_values`; idempotent."""
    for callback, method in compat_tuner.searches(trainer):
        if vars(callback).get(method) is _no_search:
            del vars(callback)[method]


def _no_search(*_: object) -> None:
    """Called in place of a search."""


def _restore(trainer: Trainer, saved: Mapping[str, Any], path: str) -> None:
    for callback, _ in compat_tuner.searches(trainer):
        name = compat_tuner.searched_attribute(trainer, callback)
        if name is None:
            continue
        if name in saved:
            compat_tuner.set_searched_value(trainer, callback, name, saved[name])
        elif trainer.is_global_zero:
            log.warning(
                "the checkpoint %s does not say which %s was found by %s, which does not search"
                " again in a resumed run: it stays %s",
                path,
                name,
                type(callback).__name__,
                compat_tuner.searched_value(trainer, name),
            )
