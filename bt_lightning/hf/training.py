"""One `Trainer.train` on one rank: where it starts, what is saved of it, and its end."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.hf.best_checkpoint import bring_best
from bt_lightning.hf.boundaries import Boundaries
from bt_lightning.hf.checkpoint_saves import CheckpointSaves
from bt_lightning.hf.patched_trainer import leaving_checkpoints, own_method, replaced_methods
from bt_lightning.hf.pending_batch import PendingBatch
from bt_lightning.hf.start_of_training import StartOfTraining
from bt_lightning.hf.trainer_checks import refuse_trainer
from bt_lightning.hf.trainer_identity import fit_request
from bt_lightning.session.running_session import RunningSession

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bt_lightning.session.options import Options

log = logging.getLogger(__name__)

_NOT_THERE = "resume_from_checkpoint=True, and there is no checkpoint to resume from: {}"


class Training:
    """From the call of `train` until it returns; every rank has one.

    Args:
        trainer: the Trainer, whose code runs.
        options: merged with the environment.
        asked: what the script gave as `resume_from_checkpoint`.
    """

    def __init__(self, trainer: Any, options: Options, asked: str | bool | None) -> None:  # noqa: FBT001 - of the Trainer
        self.trainer, self._asked = trainer, asked
        required = asked is True and options.resume == "auto"
        self._options = replace(options, resume="require") if required else options
        self._run: RunningSession | None = None
        self.boundaries: Boundaries | None = None
        """From the start of the session on."""

    def run(self, train: Callable[[str | None], Any]) -> Any:
        """Every rank: open the session, train, and wait until all is committed and published."""
        trainer, options = self.trainer, self._options
        refuse_trainer(trainer)
        root = Path(trainer.args.output_dir)
        request = partial(fit_request, trainer, options.fit_name or "")
        start = StartOfTraining(trainer, root, self._asked)
        try:
            run = RunningSession(options, root, start.offered, request)
        except CheckpointNotFoundError as error:
            if options is self._options and self._asked is True:
                raise CheckpointNotFoundError(_NOT_THERE.format(error)) from error
            raise
        try:
            result = self._train(run, start, train)
        except BaseException as error:
            self._end(run, error)
            raise
        self._end(run, None)
        run.session.close_fit()
        return result

    def _end(self, run: RunningSession, error: BaseException | None) -> None:
        """Every rank: wait until all is committed and published, as long as a signal leaves."""
        run.session.end_fit(self.trainer.state.global_step if error is None else None)
        if self.boundaries is None:
            run.end(error)
        else:
            self.boundaries.end(error)

    def _train(
        self, run: RunningSession, start: StartOfTraining, train: Callable[[str | None], Any]
    ) -> Any:
        path = start.choose(run)
        pending = PendingBatch(self.trainer, start, path)
        saves = CheckpointSaves(self.trainer, run, start.best, self._optimizers, pending.file)
        self.boundaries = Boundaries(self.trainer, run, saves)
        if start.best is not None:
            best = saves.folder / start.best
            run.ranks.from_slow_zero(lambda: bring_best(best, run))
        self._run = run
        methods = {
            **start.methods(),
            **saves.methods(),
            **pending.methods(),
            "_maybe_log_save_evaluate": self._log_save_evaluate,
        }
        with contextlib.ExitStack() as changed:
            changed.enter_context(leaving_checkpoints(str(saves.folder)))
            changed.enter_context(start.best_in(saves.folder))
            changed.enter_context(pending.watched())
            changed.enter_context(replaced_methods(self.trainer, methods))
            start.load_weights()
            result = train(path)
            saves.end()
            return result

    def begin(self) -> None:
        """Every rank, when the state is restored: let the worker publish and delete."""
        if self._run is not None and self.boundaries is not None:
            self._run.begin(self._optimizers, _cuda_device(self.trainer))
            self.boundaries.begin()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizer of torch that accelerate wraps."""
        optimizer = self.trainer.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        return [optimizer]

    def _log_save_evaluate(self, *given: Any, **named: Any) -> None:
        """In place of the Trainer's method: after it the state is that of one step."""
        assert self.boundaries is not None
        self.boundaries.before_save()
        own_method(self.trainer, "_maybe_log_save_evaluate")(*given, **named)
        self.boundaries.after_save()


def _cuda_device(trainer: Any) -> torch.device | None:
    device: torch.device = trainer.args.device
    return device if device.type == "cuda" else None
