"""Resumes a fit from the start point that rank 0 chose, when Lightning loads its checkpoint."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError
from bt_lightning.lightning_plugin import compat, compat_resume
from bt_lightning.lightning_plugin.mismatch_errors import (
    explain_optimizers,
    explain_weights,
    undo_explanations,
)
from bt_lightning.lightning_plugin.resumed_progress import check_progress
from bt_lightning.lightning_plugin.searched_values import keep_searched_values, search_again
from bt_lightning.lightning_plugin.taken_strategy import taken_strategy
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.session.run_lines import changed_numbers
from bt_lightning.session.shared_directory_check import check_same_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer

    from bt_lightning.session.base_of_run import BaseOfRun
    from bt_lightning.session.shared_directory_check import ResumedFrom
    from bt_lightning.session.start_point import StartPoint

log = logging.getLogger(__name__)

_WAY_OUT = (
    "Train longer, or start afresh with resume='never' or another checkpoint directory"
    " (BT_CHECKPOINT_DIR)"
)


def arrange_resume(
    trainer: Trainer,
    start: StartPoint,
    base: BaseOfRun,
    *,
    strict: bool | None,
    on_chosen: Callable[[str | None], ResumedFrom],
) -> None:
    """Let Lightning resume from `start`, unless the user gave a `ckpt_path`; on every rank.

    `on_chosen` is called on every rank with the path that the run resumes from.
    """

    def choose(load: Callable[[Any], None], selected: str | None) -> None:
        user_path = selected if start.by_user else None
        path = user_path or start.path
        chosen = on_chosen(None if path is None else str(path))
        check_same_view(ranks_of(trainer), None if path is None else str(path), chosen, start.mark)
        if path is None:
            load(None)
            return
        taken = taken_strategy(trainer)  # which loads, and explains, by itself
        if taken is None:
            explain_weights(trainer, trainer.lightning_module, str(path), base, strict=strict)
        compat_resume.convert_before_restore(trainer)
        if user_path or not start.warm:
            if taken is None:
                explain_optimizers(trainer, str(path))
            load(path)
            _tell_changes(trainer)
            keep_searched_values(trainer, str(path))
            check_progress(trainer, str(path))
            if not user_path and start.complete:
                log.warning("nothing is left to train: the fit ended with %s. %s", path, _WAY_OUT)
                compat_resume.skip_training(trainer)
            elif not user_path:
                _check_training_left(trainer, path)
            return
        load(None)
        read = trainer.strategy.load_checkpoint if taken is None else taken.load_weights
        compat_resume.restore_weights_only(trainer, dict(read(path)))

    compat_resume.wrap_resume_start(trainer, choose)


def _tell_changes(trainer: Trainer) -> None:
    """Say which numbers among the hyperparameters are others than at the save."""
    now = dict(trainer.lightning_module.hparams)
    changed = changed_numbers(compat.loaded_hyperparameters(trainer), now)
    if changed and trainer.is_global_zero:
        named = ", ".join(f"{key} {then} -> {here}" for key, (then, here) in changed.items())
        log.info("hyperparameters that differ from the checkpoint's: %s", named)


def _check_training_left(trainer: Trainer, path: str) -> None:
    """Warn if the checkpoint has more epochs or steps than the Trainer is to train.

    Raises:
        InvalidSettingError: Lightning would fail.
    """
    over, trained, steps = compat.loaded_progress(trainer)
    epochs, most = trainer.max_epochs, trainer.max_steps
    if epochs not in (None, -1) and epochs < over:
        msg = f"max_epochs is {epochs}, and {path} has {over} epochs behind it. {_WAY_OUT}"
        raise InvalidSettingError(msg)
    if epochs not in (None, -1) and epochs < trained:
        more = f"max_epochs is {epochs}, and {path} has {trained} epochs behind it"
    elif most != -1 and most < steps:
        more = f"max_steps is {most}, and {path} is of step {steps}"
    else:
        return
    if trainer.is_global_zero:
        log.warning("nothing is left to train: %s. %s", more, _WAY_OUT)


def cancel_resume(trainer: Trainer) -> None:
    """Undo `arrange_resume` if the fit ended before it was used."""
    compat_resume.unwrap_resume_start(trainer)
    compat_resume.undo_waiting(trainer)
    search_again(trainer)
    undo_explanations(trainer)
