"""Private names of Lightning for callbacks that average weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def go_on_averaging(trainer: Trainer) -> None:
    """Let averaging that had begun go on in an epoch that is resumed in its middle.

    It takes up its scheduler and its count in `on_train_epoch_start`, which Lightning does not call
    for such an epoch: the rest of it would have no scheduler, and the averaging would begin an
    epoch late. Its scheduler sets learning rates when it is made: the restored ones are kept.
    Source: `StochasticWeightAveraging.on_train_epoch_start`.
    """
    for swa in _callbacks(trainer, "StochasticWeightAveraging"):
        running = swa.swa_start <= trainer.current_epoch <= swa.swa_end
        if running and swa._scheduler_state is not None and not swa._initialized:
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            restored = [dict(group) for group in groups]
            swa.on_train_epoch_start(trainer, trainer.lightning_module)
            for group, values in zip(groups, restored, strict=True):
                group.update(values)


def finish_averaging(trainer: Trainer) -> None:
    """Give the module the averaged weights if the loaded checkpoint leaves nothing to train.

    It gets them in `on_train_end`, behind the last save, and Lightning does not call that hook if
    nothing is trained. Source: `StochasticWeightAveraging.on_train_end`,
    `WeightAveraging.on_train_end`.
    """
    loop: Any = trainer.fit_loop
    epochs, most = loop.max_epochs, loop.max_steps
    done = epochs not in (None, -1) and loop.epoch_progress.current.processed >= epochs
    if not done and (most == -1 or trainer.global_step < most):
        return
    module = trainer.lightning_module
    for swa in _callbacks(trainer, "StochasticWeightAveraging"):
        ended = swa._max_epochs in (-1, loop.epoch_progress.current.processed)
        if ended and not swa._model_contains_batch_norm:  # else the last save has them
            swa.transfer_weights(swa._average_model, module)
    for averaging in _callbacks(trainer, "WeightAveraging"):
        averaging._copy_average_to_current(module)


def _callbacks(trainer: Trainer, kind: str) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if any(base.__name__ == kind for base in type(c).__mro__)]
