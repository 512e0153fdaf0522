"""Saves and restores what Lightning leaves out: the RNG and dataloader states of every rank.

Each is restored at the moment at which the interrupted run would have used it next. A checkpoint
taken inside an epoch is restored behind `on_train_start`, after the dataloader's iterator was
created: the interrupted run had made that draw. One taken at the end of an epoch is restored right
before the iterator of the next epoch is created. Source: measured with Lightning 2.4 and 2.6
(`tests/plugin/test_exact_resume.py`).
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat, compat_dataloaders
from bt_lightning.lightning_plugin.accumulation_in_saves import AccumulationInSaves
from bt_lightning.lightning_plugin.compat_model_checkpoint import restore_unloaded_state
from bt_lightning.lightning_plugin.compat_reloaded_dataloaders import ReloadedDataloaders
from bt_lightning.lightning_plugin.compat_resume import (
    after_train_start,
    after_training_restored,
    begin_next_epoch,
    forget_resume,
    restores_run,
)
from bt_lightning.lightning_plugin.compat_spike_detection import let_spike_detection_load
from bt_lightning.lightning_plugin.compat_validation import stop_acting_before_validations
from bt_lightning.lightning_plugin.compat_weight_averaging import finish_averaging
from bt_lightning.lightning_plugin.inexact_notes import (
    mute_note_of_lightning,
    notes_inside_epoch,
    notes_of_save,
    say_what_is_not_exact,
)
from bt_lightning.lightning_plugin.interrupted_validation import InterruptedValidation
from bt_lightning.lightning_plugin.metrics_in_saves import MetricsInSaves
from bt_lightning.lightning_plugin.owed_scheduler_steps import OwedSchedulerSteps
from bt_lightning.lightning_plugin.stopped_early import StoppedEarly
from bt_lightning.lightning_plugin.train_position import TrainPosition
from bt_lightning.lightning_plugin.trainable_parts import TrainableParts
from bt_lightning.lightning_plugin.trainer_checks import as_logged, scalars
from bt_lightning.session.held_generators import HeldGenerators
from bt_lightning.session.random_generators import generator_states, restore_generators
from bt_lightning.session.states_of_ranks import OWN, RANKS, on_cpu, states_of_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer


def _generators(trainer: Trainer) -> dict[str, Any]:
    return generator_states(compat.cuda_device(trainer))


class ExactResume:
    """Collects the state of each rank at a save, and restores it during a resume."""

    def __init__(self) -> None:
        self._mine: dict[str, Any] | None = None
        self._at_epoch_end = False
        self._loader_states: list[Any] | None = None  # of the end of an epoch
        self._untrained: dict[str, Any] | None = None  # generators, until the resumed fit trains
        self._metrics: dict[str, float] = {}
        self._metrics_in_saves = MetricsInSaves()
        self._epoch_metrics: dict[str, Any] = {}
        self._metrics_of_ranks: list[dict[str, Any]] = []
        self._accumulation = AccumulationInSaves()
        self._owed = OwedSchedulerSteps()
        self._validation = InterruptedValidation()
        self._trainable = TrainableParts()
        self._position = TrainPosition()
        self._held = HeldGenerators()
        self._reloaded = ReloadedDataloaders()
        self._stopped = StoppedEarly()
        self._saved: dict[str, Any] = {}
        self._of_fit = ExitStack()

    def on_save(
        self,
        trainer: Trainer,
        checkpoint: dict[str, Any],
        exchange: Callable[[bytes], list[bytes] | None] | None,
    ) -> dict[str, Any] | None:
        """Called on every rank; returns the states of all ranks on rank 0, None elsewhere.

        Without an `exchange`, what is returned on each rank has its own state only, as `rank`: each
        rank saves that.

        Raises:
            RankLostError: a rank is gone or did not send its state in time.
        """
        states, generators, new = compat.loader_states(checkpoint), None, set[int]()
        validates = self._validation.is_to_be_made(trainer)
        last = compat.is_last_batch(trainer) and not validates
        saved: dict[str, Any] = {"epoch_end": last}
        if validates:
            saved["validation"] = self._validation.collect(trainer, checkpoint)
            generators = self._validation.generators(trainer)
            new = self._validation.updated(trainer.lightning_module) if generators else new
        elif last:
            compat.close_epoch(checkpoint)
        mine: dict[str, Any] = {"rng": generators or _generators(trainer), "loader": states}
        mine["held"] = self._held.collect(compat_dataloaders.train_loaders(trainer))
        mine["reloaded"] = self._reloaded.collect(trainer)
        mine["metrics"] = self._metrics_in_saves.collect(trainer, epoch_ends=last, new=new)
        saved["accumulation"] = self._accumulation.collect(trainer)
        saved["owed_steps"] = [] if validates else self._owed.collect(trainer)
        saved["trainable"] = self._trainable.collect(trainer)
        saved["position"] = self._position.record(trainer, epoch_end=last)
        saved["stopped"] = self._stopped.collect(trainer)
        saved["notes"] = notes_of_save(trainer, validates=validates)
        if trainer.world_size == 1 and exchange is not None:
            return {**saved, "ranks": [mine]}
        mine["callback_metrics"] = scalars(trainer.callback_metrics)  # each rank has its own
        if exchange is None:
            return {**saved, OWN: on_cpu(mine)}
        ranks = states_of_ranks(mine, exchange)
        return None if ranks is None else {**saved, "ranks": ranks}

    def on_load(self, trainer: Trainer, checkpoint: dict[str, Any], extra: object) -> None:
        """Called on every rank before Lightning restores its loops; `extra` are our entries.

        The metrics are restored as well, since Lightning does not: until the next validation, a
        `ReduceLROnPlateau` would fail without its metric, and a `ModelCheckpoint` would not save.
        """
        saved = extra.get("exact") if isinstance(extra, dict) else None
        if not isinstance(extra, dict) or saved is None or not restores_run(trainer):
            return
        saved = {"ranks": extra.get(RANKS), **saved}  # of a save of parts
        self._metrics = dict(extra.get("metrics", {}))
        self._accumulation.load(saved)
        self._owed.load(saved)
        self._validation.load(saved)
        self._trainable.load(saved)
        after_training_restored(trainer, partial(begin_next_epoch, trainer))
        after_training_restored(trainer, partial(finish_averaging, trainer))
        self._stopped.load(trainer, saved)
        self._saved = {name: saved.get(name, []) for name in ("epoch_end", "notes")}
        self._saved["knows_reload"] = saved["ranks"][0].get("reloaded") is not None
        let_spike_detection_load(trainer)
        restore_unloaded_state(trainer, checkpoint)
        ranks = saved["ranks"]
        self._mine = ranks[trainer.global_rank % len(ranks)]
        if len(ranks) == trainer.world_size:
            self._metrics = dict(self._mine.get("callback_metrics", self._metrics))
            self._epoch_metrics = self._mine.get("metrics", {})
        else:  # torchdata's states are a rank's own
            self._mine = {**self._mine, "loader": None, "held": {}}
            self._metrics_of_ranks = [rank.get("metrics", {}) for rank in ranks]
        self._at_epoch_end, self._untrained = bool(saved["epoch_end"]), self._mine["rng"]
        self._loader_states = self._mine["loader"] if self._at_epoch_end else None
        self._position.load(saved.get("position"), len(ranks), ranks[0]["rng"]["torch"])
        self._reloaded.load(self._mine.get("reloaded"))
        compat.set_loader_states(checkpoint, None if self._at_epoch_end else self._mine["loader"])

    def is_exact_inside_epoch(self, trainer: Trainer) -> bool:
        """Whether a save before the end of an epoch can be resumed exactly."""
        return not any(notes_inside_epoch(trainer, has_position=self._position.is_known))

    def end(self, trainer: Trainer) -> None:
        """As `reset`, of a fit that did not fail.

        One that found nothing left to train leaves learning rates and random generators as the run
        that it resumes did, for what the script does next.
        """
        if self._untrained is not None:
            if self._at_epoch_end:
                self._owed.make(trainer)
            forget_resume(trainer)
            restore_generators(self._untrained, compat.cuda_device(trainer))
        self.reset(trainer)

    def reset(self, trainer: Trainer) -> None:
        """End a fit: give its dataloaders back, drop states that it did not come to restore."""
        self._of_fit.close()
        self._mine, self._at_epoch_end, self._untrained = None, False, None
        self._loader_states = None
        self._metrics, self._epoch_metrics, self._metrics_of_ranks = {}, {}, []
        self._accumulation = AccumulationInSaves()
        self._owed = OwedSchedulerSteps()
        stop_acting_before_validations(trainer)
        self._validation = InterruptedValidation()
        self._trainable = TrainableParts()
        self._position.reset(trainer)
        self._held = HeldGenerators()
        self._reloaded.reset(trainer)
        self._stopped, self._saved = StoppedEarly(), {}

    def on_fit_start(self, trainer: Trainer) -> None:
        """Register the restores that must happen between Lightning's hooks."""
        self._metrics_in_saves.begin(trainer)
        self._accumulation.begin(trainer)
        self._validation.begin(trainer, partial(_generators, trainer))
        device = compat.cuda_device(trainer)
        restore = partial(restore_generators, device=device)
        self._reloaded.begin(trainer, partial(_generators, trainer), restore)
        resumes = self._mine is not None or bool(self._metrics)
        act = partial(self._before_iterator, trainer)
        compat.before_train_iterator(trainer, act, anew=resumes)
        after_train_start(trainer, lambda: self._after_train_start(trainer))

    def on_train_start(self, trainer: Trainer) -> None:
        """Restore the metrics."""
        self.restore_callback_metrics(trainer)

    def restore_callback_metrics(self, trainer: Trainer) -> None:
        """Give the Trainer the metrics of the checkpoint, also where nothing is left to train."""
        device = trainer.strategy.root_device
        for name, value in self._metrics.items():
            trainer.callback_metrics.setdefault(name, as_logged(value).to(device))

    def _after_train_start(self, trainer: Trainer) -> None:
        self._metrics, self._untrained = {}, None
        metrics, self._epoch_metrics = self._epoch_metrics, {}
        self._metrics_in_saves.restore(trainer, metrics)
        parts, self._metrics_of_ranks = self._metrics_of_ranks, []
        self._metrics_in_saves.restore_of_all(trainer, parts)
        self._accumulation.restore(trainer)
        self._trainable.restore(trainer)
        self._owed.make(trainer)
        self._validation.restore(trainer)
        self._reloaded.after_train_start(trainer)
        self._stopped.restore(trainer)
        if self._saved:
            known = self._position.is_known
            self._of_fit.callback(mute_note_of_lightning())
            say_what_is_not_exact(trainer, self._saved, has_position=known)
        self._saved = {}
        self._set_generators(trainer)
        self._position.after_train_start(trainer)

    def _set_generators(self, trainer: Trainer, *, anew: bool = False) -> None:
        """`anew`: what loads the data was made anew, as in the uninterrupted run."""
        if self._mine is None:
            return
        restore_generators(self._mine["rng"], compat.cuda_device(trainer))
        if not anew:
            loaders = compat_dataloaders.train_loaders(trainer)
            self._held.restore(loaders, self._mine.get("held", {}))
        self._mine = None

    def _before_iterator(self, trainer: Trainer) -> None:
        self.restore_callback_metrics(trainer)  # if nothing is left to train, no hook follows
        if self._reloaded.is_provisional:
            return
        self._held.begin(compat_dataloaders.train_loaders(trainer))
        replaced = self._reloaded.replaced(trainer)
        continued = self._position.before_iterator(
            trainer, epoch_end=self._at_epoch_end, replaced=replaced
        )
        states, self._loader_states = self._loader_states, None
        if states and not continued and replaced != "new":
            compat.reopen_loaders(trainer, states)
        if self._at_epoch_end and not compat.iterates_at_train_start(trainer):
            self._set_generators(trainer, anew=replaced == "new")
        if replaced:  # the loops have begun
            self._position.say_what_differs(trainer)
