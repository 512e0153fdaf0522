"""What `BTLightning` adds to each checkpoint of a fit, and gives back when one is loaded."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import logger_runs
from bt_lightning.lightning_plugin.compat_resume import after_training_restored, restores_run
from bt_lightning.lightning_plugin.exact_resume import ExactResume
from bt_lightning.lightning_plugin.logger_runs import LoggerRuns
from bt_lightning.lightning_plugin.mismatch_errors import save_facts
from bt_lightning.lightning_plugin.own_checkpoint_folders import restore_own_folders
from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
from bt_lightning.lightning_plugin.taken_strategy import taken_strategy
from bt_lightning.session.checkpoint_writer import EXTRA
from bt_lightning.session.states_of_lost_ranks import of_all_ranks
from bt_lightning.session.states_of_ranks import OWN

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.save_boundary import SaveBoundary
    from bt_lightning.session.rank_session import RankSession


class AddedToSaves:
    """The state that Lightning does not save: of generators and dataloaders, and of loggers.

    Args:
        exact: whether a resume is exact.
        loggers: whether loggers go on with their runs.
    """

    def __init__(self, *, exact: bool, loggers: bool) -> None:
        self.exact = ExactResume() if exact else None
        self.loggers = LoggerRuns(enabled=loggers)

    def collect(
        self,
        trainer: Trainer,
        checkpoint: dict[str, Any],
        session: RankSession,
        boundary: SaveBoundary,
    ) -> None:
        """Every rank: add the metrics, what an exact resume needs, and where the loggers stand."""
        origin: dict[str, Any] = {"fit": session.fit_facts}
        if boundary.interim.reason is not None:
            origin["interim"] = boundary.interim.reason
        extra: dict[str, Any] = {**save_facts(trainer), "origin": origin}
        if self.exact is not None:
            exchange = None if taken_strategy(trainer) is not None else boundary.exchange
            collect = partial(self.exact.on_save, trainer, checkpoint, exchange)
            extra["exact"] = of_all_ranks(collect, session.writer, boundary.left_s, origin)
            if exchange is None and extra["exact"] is not None:
                extra[OWN] = extra["exact"].pop(OWN)
        logged = self.loggers.state(trainer)
        if facts := self.loggers.facts():
            origin[logger_runs.FACTS] = facts
            extra[logger_runs.STATE] = logged
        checkpoint[EXTRA] = extra

    def on_load(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Every rank: take what `collect` added."""
        extra = checkpoint.get(EXTRA)
        if isinstance(extra, dict) and restores_run(trainer):
            self.loggers.on_load(extra.get(logger_runs.STATE))
            states, io = checkpoint.get("callbacks", {}), trainer.strategy.checkpoint_io
            if isinstance(io, RoutedCheckpointIO):
                restore = partial(restore_own_folders, trainer, states, io.is_ours)
                after_training_restored(trainer, restore)
        if self.exact is not None:
            self.exact.on_load(trainer, checkpoint, extra)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Every rank, after the restore."""
        if self.exact is not None:
            self.exact.on_fit_start(trainer)

    def on_train_start(self, trainer: Trainer) -> None:
        """Every rank: restore the random generators; log what the run before had to log next."""
        if self.exact is not None:
            self.exact.on_train_start(trainer)
        self.loggers.on_train_start()

    def end(self, trainer: Trainer) -> None:
        """Every rank: the fit is over."""
        self.loggers.end()
        if self.exact is not None:
            self.exact.end(trainer)

    def reset(self, trainer: Trainer) -> None:
        """Every rank: the fit failed, or did not begin."""
        self.loggers.end()
        if self.exact is not None:
            self.exact.reset(trainer)
