"""Begins the runs of a Trainer's loggers, when it is known what the fit starts from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.lightning_plugin.logger_runs import FACTS, FactsOfAll, RunNote, facts_of_all
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.logger_runs import LoggerRuns
    from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
    from bt_lightning.session.start_point import StartPoint


def begin_loggers(
    runs: LoggerRuns, trainer: Trainer, start: StartPoint, routed: RoutedCheckpointIO
) -> None:
    """Every rank: let the loggers go on with their runs where the fit goes on with its checkpoint.

    Where the user names what it starts from, or it takes weights only, they begin new runs.

    Raises:
        OSError: on every rank: a log cannot be read or written.
    """
    ranks_of(trainer).from_slow_zero(lambda: _begin(runs, trainer, start, routed))


def _begin(
    runs: LoggerRuns, trainer: Trainer, start: StartPoint, routed: RoutedCheckpointIO
) -> None:
    root, fit = routed.bt_root, start.fit
    own = not start.by_user and not start.warm
    restarts = own and start.path is None and start.goes_on
    note = RunNote(root, fit.record.id if fit is not None else "", read=restarts)
    found = _facts(start, routed) if own and start.path is not None else {}
    runs.begin(trainer, found, note, cut=not start.complete)


def _facts(start: StartPoint, routed: RoutedCheckpointIO) -> FactsOfAll:
    """What the checkpoint says of loggers; nothing if it is of another job, or no directory."""
    path = Path(start.path or "")
    if start.folder is not None:
        return facts_of_all(routed.bt_evicted.reader(str(path)).manifest.origin.get(FACTS))
    if not path.resolve().is_relative_to(routed.bt_root):
        return {}
    try:
        return facts_of_all(read_manifest(path).origin.get(FACTS))
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return {}  # a file of Lightning itself
