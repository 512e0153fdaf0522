"""What a `ModelCheckpoint` with a folder of its own knows of its files when a run resumes.

Lightning restores it from the checkpoint as it was, if the folder has the same name, and does not
look whether the files are there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.session.value_digests import without_stamps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

_OF_ONE_FOLDER = (
    "best_model_score",
    "kth_best_model_path",
    "kth_value",
    "last_model_path",
    "best_k_models",
)
"""What Lightning restores only if the folder is the same."""


def restore_own_folders(
    trainer: Trainer, states: Mapping[str, Any], is_ours: Callable[[str], bool]
) -> None:
    """Called on every rank when Lightning has restored the callbacks from their `states`.

    A folder that is another one by a date or an id in its name alone is gone on with. Files that
    are gone (a script that empties its folder at each start, a lost disk) are forgotten: beside
    them nothing would be better, and so nothing saved.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    own = [
        callback
        for callback in callbacks
        if isinstance(callback, model_checkpoint_classes())
        and callback.dirpath is not None
        and "://" not in str(callback.dirpath)
        and not is_ours(str(callback.dirpath))
    ]
    for callback in own:
        _go_on_with(callback, states.get(callback.state_key, {}))
    gone = ranks_of(trainer).from_zero(lambda: _gone(own))
    if gone and trainer.is_global_zero:
        log.warning("no longer the best, since they are gone: %s", ", ".join(sorted(gone)))
    for callback in own:
        _forget(callback, gone)


def _go_on_with(callback: Any, state: Mapping[str, Any]) -> None:
    before, now = str(state.get("dirpath")), str(callback.dirpath)
    if before != now and without_stamps(before) == without_stamps(now):
        for name in _OF_ONE_FOLDER:
            if name in state:
                setattr(callback, name, state[name])


def _gone(callbacks: list[Any]) -> set[str]:
    paths = (
        path
        for callback in callbacks
        for path in (*callback.best_k_models, callback.best_model_path, callback.last_model_path)
    )
    return {path for path in paths if path and "://" not in path and not Path(path).exists()}


def _forget(callback: Any, gone: set[str]) -> None:
    kept = {path: score for path, score in callback.best_k_models.items() if path not in gone}
    if callback.last_model_path in gone:
        callback.last_model_path = ""
    if callback.best_model_path not in gone and len(kept) == len(callback.best_k_models):
        return
    callback.best_k_models = kept
    callback.kth_best_model_path = ""  # found anew when there are `save_top_k` again
    best = min if callback.mode == "min" else max
    callback.best_model_path = best(kept, key=kept.__getitem__) if kept else ""
    callback.best_model_score = kept.get(callback.best_model_path)
