"""Defers saves of a `ModelCheckpoint` until the validation or epoch end after the batch is over.

A checkpoint taken between a batch and the validation that follows it cannot be resumed exactly, and
would be ranked by the metric of the previous validation.
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
from bt_lightning.lightning_plugin.saves_behind_hooks import SavesBehindHooks
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
    """A batch after which `ModelCheckpoint` has decided whether to save, but has not saved yet."""

    batch_idx: int  # not the batch, which would stay in memory
    ends_epoch: bool
    wanted: bool
    """Whether it would have saved at once."""
    had_run: bool
    """Whether a validation had run before."""
    validated: bool = False
    """Whether its call of `on_validation_end` is deferred as well."""


class DeferredSaves:
    """Lets a `ModelCheckpoint` decide in its usual hook, and save after the validation or epoch.

    After the last batch of an epoch the save waits for the epoch's end: an earlier checkpoint
    cannot be resumed exactly. Lightning would skip the epoch's validation and end hooks and count
    epochs wrongly, so that a run that is resumed twice trains too many steps (2.6) or repeats a
    batch (2.4). After another batch it waits for the validation that is scheduled after it, if any.
    So the steps are those of plain Lightning, with the later state and the newer metrics.
    """

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback  # not its bound methods: spawned ranks unpickle this
        self._pending: _Pending | None = None
        self.behind_hooks = SavesBehindHooks(callback)
        callback.on_train_batch_start = self.on_train_batch_start  # type: ignore[method-assign]
        callback.on_train_batch_end = self.on_train_batch_end  # type: ignore[method-assign]
        callback.on_validation_end = self.on_validation_end  # type: ignore[method-assign]
        callback.on_train_epoch_end = self.on_train_epoch_end  # type: ignore[method-assign]

    # hooks

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make a save that was deferred to a validation without batches."""
        self.complete(trainer, pl_module)
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
        """Save now, or decide now and save at the end of validation or epoch."""
        last = is_last_batch(trainer)
        save_hook = partial(
            type(self._callback).on_train_batch_end,
            self._callback,
            trainer,
            pl_module,
            outputs,
            batch,
            batch_idx,
        )
        if not self.behind_hooks.is_stock("on_train_batch_end") or not (
            last or (validation_is_scheduled(trainer) and not _swaps_back_late(pl_module))
        ):
            with self.behind_hooks.waiting(trainer, "on_train_batch_end"):
                save_hook()
            return
        had_run, wanted = validation_has_run(trainer), self._would_save(save_hook)
        if last or wanted:
            self._pending = _Pending(batch_idx, last, wanted, had_run)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the save that was deferred to this validation; not one for the epoch's end."""
        pending, late = self._pending, _swaps_back_late(pl_module)
        stays = self.behind_hooks.is_stock("on_validation_end") and not late
        with self.behind_hooks.waiting(trainer, "on_validation_end", unless=late):
            if pending is None or (pending.ends_epoch and not stays):
                type(self._callback).on_validation_end(self._callback, trainer, pl_module)
                return
            pending.validated = True
            if not pending.ends_epoch:
                self.complete(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the deferred save, then the callback's own save of the epoch's end."""
        with self.behind_hooks.waiting(trainer, "on_train_epoch_end"):
            self.complete(trainer, pl_module)
            type(self._callback).on_train_epoch_end(self._callback, trainer, pl_module)

    # the deferred save

    @property
    def is_pending(self) -> bool:
        """Whether something waits, be it only a call of `on_validation_end`."""
        return self._pending is not None or bool(self.behind_hooks.paths)

    @property
    def wanted(self) -> bool | None:
        """Whether a save is deferred; None if no batch is pending."""
        return None if self._pending is None else self._pending.wanted

    def forget(self) -> None:
        """Drop what waits, of a fit that failed."""
        self._pending = None
        self.behind_hooks.forget()

    def complete(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the deferred save and call the deferred `on_validation_end`; on every rank."""
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
        if not pl_module.automatic_optimization:  # its hook may swap weights in for the save
            kind = type(callback)
            kind.on_train_batch_end(callback, trainer, pl_module, None, None, batch_idx)
            return
        metrics = callback._monitor_candidates(trainer)
        callback._save_topk_checkpoint(trainer, metrics)
        callback._save_last_checkpoint(trainer, metrics)

    def _would_save(self, save_hook: Callable[[], None]) -> bool:
        """Whether `save_hook` would save; calls it with the saving methods disabled."""
        calls: list[object] = []

        def note(*args: object) -> None:
            calls.append(args)

        hooks = {"_save_topk_checkpoint": note, "_save_last_checkpoint": note}
        own = vars(self._callback)
        before = {name: own[name] for name in hooks if name in own}
        own.update(hooks)
        try:
            save_hook()
        finally:
            for name in hooks:
                del own[name]
            own.update(before)
        return bool(calls)


def save_deferred_now(
    trainer: Trainer, pl_module: LightningModule, exception: BaseException
) -> None:
    """Make the deferred saves when a fit fails before their time; called on every rank.

    Not if the weights may be swapped at the moment (averaged ones, for a validation), nor with
    several ranks, since one may be missing and all take part in a save. A failure to save becomes a
    warning, since the exception that ends the run is the one to raise.
    """
    pending = [d for d in _deferred_saves_of(trainer) if d.is_pending]
    if not pending or isinstance(exception, CheckpointError):
        return
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    owners = [o for o in (*callbacks, pl_module) if not type(o).__module__.startswith(_OURS)]
    swapped = trainer.validating and any(overrides(o, h) for o in owners for h in _SWAPS_IN)
    if trainer.world_size > 1 or swapped:
        reason = "a hook may have changed the weights" if swapped else "other ranks may be gone"
        if trainer.is_global_zero and any(d.wanted or d.behind_hooks.paths for d in pending):
            _warn(trainer, f"was to be made at its end, and {reason}")
        return
    for deferred in pending:
        try:
            deferred.behind_hooks.make()
            deferred.complete(trainer, pl_module)
        except Exception as error:  # noqa: BLE001 - the run has an exception already
            _warn(trainer, f"failed: {type(error).__name__}: {error}")


def _warn(trainer: Trainer, text: str) -> None:
    warnings.warn(
        f"training failed before the validation or the epoch after step {trainer.global_step} was"
        f" over; the save of that step {text}",
        stacklevel=3,
    )


def make_saves_behind_hooks(trainer: Trainer) -> None:
    """Make what was decided on in the hooks that have all run; called on every rank."""
    for deferred in _deferred_saves_of(trainer):
        deferred.behind_hooks.make()


def is_to_be_saved(trainer: Trainer, path: str) -> bool:
    """Whether a `ModelCheckpoint` has decided to save there; the same on every rank."""
    return any(path in deferred.behind_hooks.paths for deferred in _deferred_saves_of(trainer))


def forget_deferred(trainer: Trainer) -> None:
    """Drop what a failed fit left; called on every rank."""
    for deferred in _deferred_saves_of(trainer):
        deferred.forget()


def _deferred_saves_of(trainer: Trainer) -> list[DeferredSaves]:
    hooks = [vars(c).get("on_train_batch_end") for c in trainer.callbacks]  # type: ignore[attr-defined]
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, DeferredSaves)]


def _swaps_back_late(module: LightningModule) -> bool:
    """Whether the module may swap weights back only after all callbacks' `on_validation_end`."""
    return any(overrides(module, hook) for hook in _SWAPS_IN) and any(
        overrides(module, hook) for hook in _SWAPS_BACK
    )
