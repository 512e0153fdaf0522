"""Saves that wait until the batch that they follow is over: its validation, the end of its epoch.

A checkpoint of the moment between a batch and the validation that is due behind it cannot be
resumed exactly, and what it is ranked by is of the validation before.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointError
from bt_lightning.lightning_plugin.compat import is_last_batch
from bt_lightning.lightning_plugin.compat_validation import (
    as_if_validation_had_run,
    validation_has_run,
    validation_is_scheduled,
)
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.weight_change_watch import overrides

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

_OURS = "bt_lightning."
_SWAPS_IN = ("on_validation_start", "on_validation_epoch_start", "on_validation_model_eval")
_SWAPS_BACK = ("on_validation_end", "on_validation_model_train")
"""Hooks of the module that run after those of every callback."""


@dataclass
class _Pending:
    """A batch that is not over, of whose end `ModelCheckpoint` has been told."""

    batch_idx: int  # not the batch: it would stay in memory
    ends_epoch: bool
    wanted: bool
    """Whether it would have saved at once."""
    had_run: bool
    """Whether there had been a validation."""
    validated: bool = False
    """`ModelCheckpoint` has not been told of the end of the validation behind it."""


class DeferredSaves:
    """Lets a `ModelCheckpoint` decide when Lightning asks it, and save when the batch is over.

    After the last batch of an epoch that is the epoch's end: a checkpoint of any moment before it
    cannot be resumed exactly. Lightning skips the epoch's validation and its end, and miscounts
    epochs from then on, so that a run which is resumed twice trains too many (2.6) or repeats a
    batch (2.4). After another batch it is the end of the validation that is scheduled behind it, if
    one is. So the steps are those that Lightning would have saved at, of the later state, and
    ranked by the newer metrics.
    """

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback  # no bound methods of it: a spawned rank unpickles this
        self._pending: _Pending | None = None
        self._base = next(k for k in type(callback).__mro__ if k in model_checkpoint_classes())
        callback.on_train_batch_start = self.on_train_batch_start  # type: ignore[method-assign]
        callback.on_train_batch_end = self.on_train_batch_end  # type: ignore[method-assign]
        callback.on_validation_end = self.on_validation_end  # type: ignore[method-assign]
        callback.on_train_epoch_end = self.on_train_epoch_end  # type: ignore[method-assign]

    # hooks

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the save that waited for a validation which had no batch."""
        self.release(trainer, pl_module)
        kind = type(self._callback)
        kind.on_train_batch_start(self._callback, trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save now, or decide now and save when the batch is over."""
        last = is_last_batch(trainer)
        told = partial(
            type(self._callback).on_train_batch_end,
            self._callback,
            trainer,
            pl_module,
            outputs,
            batch,
            batch_idx,
        )
        if not self._is_stock("on_train_batch_end") or not (
            last or (validation_is_scheduled(trainer) and not _swaps_back_late(pl_module))
        ):
            told()
            return
        had_run, wanted = validation_has_run(trainer), self._would_save(told)
        if last or wanted:
            self._pending = _Pending(batch_idx, last, wanted, had_run)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the save that waited for this validation, unless the epoch is to end first."""
        pending = self._pending
        stays = self._is_stock("on_validation_end") and not _swaps_back_late(pl_module)
        if pending is None or (pending.ends_epoch and not stays):
            type(self._callback).on_validation_end(self._callback, trainer, pl_module)
            return
        pending.validated = True
        if not pending.ends_epoch:
            self.release(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the save that was put off, then whatever is due now."""
        self.release(trainer, pl_module)
        type(self._callback).on_train_epoch_end(self._callback, trainer, pl_module)

    # the save that waits

    @property
    def wanted(self) -> bool | None:
        """Whether a save waits; None if no batch does."""
        return None if self._pending is None else self._pending.wanted

    def release(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The batch is over: save, and tell of its validation; on every rank."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.wanted:
            with as_if_validation_had_run(trainer, pending.had_run):
                self._save(trainer, pl_module, pending.batch_idx)
        if pending.validated:
            type(self._callback).on_validation_end(self._callback, trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        callback = self._callback
        if not pl_module.automatic_optimization:  # it may put other weights in for the save
            kind = type(callback)
            kind.on_train_batch_end(callback, trainer, pl_module, None, None, batch_idx)
            return
        metrics = callback._monitor_candidates(trainer)
        callback._save_topk_checkpoint(trainer, metrics)
        callback._save_last_checkpoint(trainer, metrics)

    def _would_save(self, told: Callable[[], None]) -> bool:
        """Whether the callback saves when it is `told`; it does not now."""
        calls: list[object] = []

        def note(*args: object) -> None:
            calls.append(args)

        hooks = {"_save_topk_checkpoint": note, "_save_last_checkpoint": note}
        own = vars(self._callback)
        before = {name: own[name] for name in hooks if name in own}
        own.update(hooks)
        try:
            told()
        finally:
            for name in hooks:
                del own[name]
            own.update(before)
        return bool(calls)

    def _is_stock(self, hook: str) -> bool:
        return getattr(type(self._callback), hook) is getattr(self._base, hook)


def save_deferred_now(
    trainer: Trainer, pl_module: LightningModule, exception: BaseException
) -> None:
    """Make the saves that wait when a fit fails before their time; every rank.

    Not where the weights may be others at the moment (averaged ones, for a validation), nor where
    a rank may be missing: saving is done by all of them. A failure to save is told as a warning,
    as the exception that ends the run is the one that is raised.
    """
    waiting = [d for d in _deferrals(trainer) if d.wanted is not None]
    if not waiting or isinstance(exception, CheckpointError):
        return
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    owners = [o for o in (*callbacks, pl_module) if not type(o).__module__.startswith(_OURS)]
    swapped = trainer.validating and any(overrides(o, h) for o in owners for h in _SWAPS_IN)
    if trainer.world_size > 1 or swapped:
        reason = "a hook may have changed the weights" if swapped else "other ranks may be gone"
        if trainer.is_global_zero and any(d.wanted for d in waiting):
            _warn(trainer, f"was to be made at its end, and {reason}")
        return
    for deferral in waiting:
        try:
            deferral.release(trainer, pl_module)
        except Exception as error:  # noqa: BLE001 - the run has an exception already
            _warn(trainer, f"failed: {type(error).__name__}: {error}")


def _warn(trainer: Trainer, text: str) -> None:
    warnings.warn(
        f"training failed before the validation or the epoch behind step {trainer.global_step} was"
        f" over; the save of that step {text}",
        stacklevel=3,
    )


def _deferrals(trainer: Trainer) -> list[DeferredSaves]:
    hooks = [vars(c).get("on_train_batch_end") for c in trainer.callbacks]  # type: ignore[attr-defined]
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, DeferredSaves)]


def _swaps_back_late(module: LightningModule) -> bool:
    """Whether the weights may be others until after `on_validation_end` of every callback."""
    return any(overrides(module, hook) for hook in _SWAPS_IN) and any(
        overrides(module, hook) for hook in _SWAPS_BACK
    )
