"""Restores what a `ModelCheckpoint` knows of its saves and Lightning does not load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer


def restore_unloaded_state(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Called on every rank with what a run resumes from: restore the newest score and save of each.

    A `ModelCheckpoint` that knows of no save writes a `last` at the end of the fit.
    Under the condition under which Lightning restores the other scores. Source:
    `ModelCheckpoint.load_state_dict`, `on_train_end`.
    """
    states = checkpoint.get("callbacks", {})
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if not isinstance(callback, model_checkpoint_classes()):
            continue
        state = states.get(callback.state_key, {})
        if state.get("dirpath") != callback.dirpath:
            continue
        callback.current_score = state.get("current_score")
        saved = state.get("last_model_path") or state.get("best_model_path")
        if saved and not callback._last_checkpoint_saved:
            callback._last_checkpoint_saved = saved
