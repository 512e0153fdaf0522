"""Completes a snapshot's copy before hooks that may change weights outside an optimizer step.

The guard of a lazy snapshot makes optimizers wait. Hooks of the user, and of callbacks that swap or
average weights, change them as well, so this callback waits for the copy before such a hook runs.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.lightning_plugin import compat
from bt_lightning.lightning_plugin.compat_logged_metrics import (
    look_at_logged,
    stop_looking_at_logged,
)
from bt_lightning.lightning_plugin.compat_logger_artifacts import (
    defer_uploads,
    stop_deferring_uploads,
)
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import Callback
from bt_lightning.lightning_plugin.logger_artifacts_after_commit import LoggerArtifacts
from bt_lightning.lightning_plugin.taken_strategy import taken_strategy
from bt_lightning.session.manifest_facts import package_versions
from bt_lightning.session.serving_files import serving_files
from bt_lightning.snapshot.size_estimate import alias_large_groups, state_size
from bt_lightning.snapshot.state_files import encode_early

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
    from bt_lightning.session.checkpoint_writer import CheckpointWriter
    from bt_lightning.session.rank_session import RankSession
    from bt_lightning.snapshot.save_record import SaveRecord
    from bt_lightning.snapshot.saver import Saver

log = logging.getLogger(__name__)

_LIGHTNING = ("lightning.", "pytorch_lightning.")
_CHANGERS = {
    "BackboneFinetuning",
    "BaseFinetuning",
    "EMAWeightAveraging",
    "LambdaCallback",
    "ModelPruning",
    "StochasticWeightAveraging",
    "WeightAveraging",
}
"""Callbacks of Lightning that change weights or run user code."""
_WEIGHT_HOOKS = (
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_validation_model_eval",
)
_ENOUGH = 50
"""Batches within which Lightning should have counted an optimizer step."""
_BEHIND_A_SAVE = ("on_train_batch_end", "on_validation_end", "on_validation_model_train")
"""Hooks of the module that run right after a save, before this callback's next hook."""


def overrides(owner: object, hook: str) -> bool:
    """Whether `owner`, a module or a callback, has a `hook` that is not Lightning's own."""
    if hook in vars(owner):  # `deferred_saves` sets hooks on ModelCheckpoints
        return not vars(owner)[hook].__module__.startswith("bt_lightning.")
    for kind in type(owner).__mro__:
        if hook in vars(kind):
            changer = any(base.__name__ in _CHANGERS for base in type(owner).__mro__)
            return changer or not kind.__module__.startswith(_LIGHTNING)
    return False


def reason_for_eager(module: LightningModule) -> str | None:
    """Why snapshots of this module must be copied eagerly; None if they can be lazy."""
    for hook in _BEHIND_A_SAVE:
        if overrides(module, hook):
            return f"{type(module).__name__}.{hook} runs right after a save, and may change weights"
    return None


class WeightChangeWatch(Callback):
    """Runs before every other callback of the Trainer, on each rank that writes."""

    def __init__(
        self, trainer: Trainer, module: LightningModule, saver: Saver, writer: CheckpointWriter
    ) -> None:
        self._saver: Saver | None = saver
        self._writer: CheckpointWriter | None = writer
        self._base_to_verify = writer.base is not None
        owners = [*trainer.callbacks, module]  # type: ignore[attr-defined]
        self._overridden = frozenset(
            hook
            for hook in _WEIGHT_HOOKS
            for owner in owners
            if getattr(owner, "state_key", None) != "BTLightning" and overrides(owner, hook)
        )
        self._num_states = -1
        self._without_step = 0 if trainer.is_global_zero else -1
        """Batches without a step counted by Lightning; -1 after the first step or the warning."""

    def close(self) -> None:
        """Turn this callback off."""
        self._saver = self._writer = None

    @override
    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has no saver."""
        return {**self.__dict__, "_saver": None, "_writer": None}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._saver is not None:
            self._saver.state_may_change()
            if self._base_to_verify and trainer.global_step:  # behind all hooks of the first step
                self._verify_base(self._saver)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Allocate a large enough arena when an optimizer has created its state."""
        if sum(len(optimizer.state) for optimizer in trainer.optimizers) != self._num_states:
            self._prepare(trainer, pl_module)
        if self._without_step >= 0:
            self._check_for_steps(trainer, max(_ENOUGH, 2 * trainer.accumulate_grad_batches))

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before("on_train_epoch_start")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before("on_train_epoch_end")
        if self._without_step > 0:
            self._check_for_steps(trainer, 1)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before("on_validation_start", "on_validation_model_eval")

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before("on_validation_epoch_start")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before("on_validation_epoch_end")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before("on_validation_end")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_copy()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._finish_copy()

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._finish_copy()

    def _check_for_steps(self, trainer: Trainer, enough: int) -> None:
        """Warn that nothing is saved if Lightning does not count the optimizer steps."""
        self._without_step += 1
        if trainer.global_step:
            self._without_step = -1
        elif self._without_step > enough:
            log.warning(
                "%d batches were trained and Lightning has counted no optimizer step:"
                " trainer.global_step is 0, and no ModelCheckpoint saves while it is. Return the"
                " optimizers from configure_optimizers and, in manual optimization, step those"
                " that self.optimizers() gives",
                self._without_step - 1,
            )
            self._without_step = -1

    def _prepare(self, trainer: Trainer, module: LightningModule) -> None:
        if self._saver is not None and self._writer is not None:
            self._num_states = sum(len(optimizer.state) for optimizer in trainer.optimizers)
            taken = taken_strategy(trainer)
            if taken is not None:
                taken.prepare(self._saver)
                return
            base, serving = self._writer.base, self._writer.serving
            left_out = base.tensors if base is not None else ()
            self._saver.prepare(state_size(module, trainer.optimizers, left_out))
            groups = alias_large_groups(module, trainer.optimizers, left_out)
            names = serving.names(groups.get("state_dict"))
            self._saver.encode_early(partial(encode_early, groups, names))

    def _verify_base(self, saver: Saver) -> None:
        """Once: what writes to frozen weights in each step is found before the first save."""
        self._base_to_verify = False
        if self._writer is not None and self._writer.base is not None:
            saver.verify_early(self._writer.base.look())

    def _before(self, *hooks: str) -> None:
        if self._saver is not None and not self._overridden.isdisjoint(hooks):
            self._finish_copy()

    def _finish_copy(self) -> None:
        if self._saver is not None:
            self._saver.state_may_change()
            self._saver.finish_copy()


def begin_saves(
    trainer: Trainer, module: LightningModule, session: RankSession, io: RoutedCheckpointIO
) -> None:
    """Every rank, when the fit starts: let the ranks that write save by snapshots."""
    writer, leads = io.bt_io.writer, session.writer is not None
    taken = taken_strategy(trainer)
    if taken is None:
        writer.serving = serving_files(module)  # the module is complete only at this hook
    else:
        writer = taken.begin_saves()
    if leads or taken is not None:
        compat.preload_save_imports()
        package_versions()  # reads files, once
    saves = session.begin(
        (lambda: trainer.optimizers) if taken is None else taken.optimizers,
        (lambda record: log_metrics(trainer, record)) if leads else (lambda _: None),
        device=compat.cuda_device(trainer),
    )
    if saves is None:
        return
    reason = reason_for_eager(module) if saves.policy == "auto" else None
    if taken is not None and taken.eager and saves.policy == "auto":
        saves.saver.lazy = False
    elif reason is not None:
        saves.saver.lazy = False
        log.warning(
            "snapshots are copied before a save returns: %s. If it does not,"
            " BTLightning(snapshot='lazy') copies during training",
            reason,
        )
    close_saves(trainer)
    watch = WeightChangeWatch(trainer, module, saves.saver, writer)
    # before every other callback; a new list, as the old one is being walked
    trainer.callbacks = [watch, *trainer.callbacks]  # type: ignore[attr-defined]
    if not leads:
        return
    if session.writer is not None:
        look_at_logged(trainer, session.writer.metrics.add)
    saves.artifacts = artifacts = LoggerArtifacts(io.bt_root, saves.saver.pending)
    for logger in trainer.loggers:
        if overrides(logger, "after_save_checkpoint"):
            vars(logger)["after_save_checkpoint"] = _AfterCommit(logger, saves.saver)
        defer_uploads(logger, artifacts.upload_when_committed)


class _AfterCommit:
    """Calls a user's `after_save_checkpoint` after the commit, since it may open the checkpoint."""

    def __init__(self, logger: Any, saver: Saver) -> None:
        self._act = logger.after_save_checkpoint
        self._saver = saver

    def __call__(self, *args: Any) -> None:
        self._saver.drain()
        self._act(*args)


def log_metrics(trainer: Trainer, record: SaveRecord) -> None:
    """Log the numbers of a save to the loggers of the Trainer."""
    for logger in trainer.loggers:
        logger.log_metrics(record.metrics(), step=compat.logged_step(trainer))


def close_saves(trainer: Trainer) -> None:
    """Undo `begin_saves` at the end of the fit; idempotent."""
    stop_looking_at_logged(trainer)
    for logger in trainer.loggers:
        if isinstance(vars(logger).get("after_save_checkpoint"), _AfterCommit):
            del vars(logger)["after_save_checkpoint"]
        stop_deferring_uploads(logger)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for watch in [callback for callback in callbacks if isinstance(callback, WeightChangeWatch)]:
        watch.close()
    if any(isinstance(callback, WeightChangeWatch) for callback in callbacks):
        trainer.callbacks = [c for c in callbacks if not isinstance(c, WeightChangeWatch)]  # type: ignore[attr-defined]
