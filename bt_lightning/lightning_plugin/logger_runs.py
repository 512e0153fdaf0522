"""Lets the loggers of a restarted fit go on with their runs, from where the checkpoint stands.

A checkpoint's manifest says of each logger which run it had and how far it had logged; its state
holds what was not yet written. On rank 0, whose loggers alone have a run.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD
from bt_lightning.lightning_plugin.compat_logged_rows import OwedRow, log_owed, owed_row
from bt_lightning.lightning_plugin.versioned_log_dirs import TOKEN_CHARS, is_token
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.session.random_generators import generator_states, restore_generators

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

Facts = dict[str, Any]
"""Which run a logger has and how far it has logged: JSON values."""
FactsOfAll = dict[str, Facts]
"""By kind and number of the logger."""

STATE = "logged"
"""Key, in what `BTLightning` adds to a checkpoint, of the rows that no log has yet."""
FACTS = "loggers"
"""Key of the facts of all loggers in a manifest's origin."""
_NOTE = "logger_runs.json"
_RUNS = {
    "CSVLogger": ("csv_logger_run", "CsvLoggerRun"),
    "TensorBoardLogger": ("tensorboard_logger_run", "TensorBoardLoggerRun"),
    "MLFlowLogger": ("mlflow_logger_run", "MLFlowLoggerRun"),
    "WandbLogger": ("wandb_logger_run", "WandbLoggerRun"),
}
_PLACES = ("lightning.pytorch.loggers.", "pytorch_lightning.loggers.")


class LoggerRun(Protocol):
    """The run of one logger, before and after it is made."""

    kind: str
    logger: Any
    fields: Mapping[str, type | tuple[type, ...]]
    """What its facts have, and of which types."""

    @property
    def begun(self) -> bool:
        """Whether the logger has made its run: then it can be no other."""

    def takes(self, facts: Facts) -> bool:
        """Whether the logger can go on with this run; it is set to do so."""

    def begin(self, facts: Facts | None, *, cut: bool) -> None:
        """Make the run: that of `facts`, without what it logged behind them if `cut`, or a new one.

        Raises:
            OSError: the log cannot be read or written.
        """

    def facts(self) -> Facts:
        """What `takes` and `begin` are given by the fit that goes on from here."""

    def pending(self) -> list[Any]:
        """Rows that were logged and are in the memory of the process alone."""

    def add_pending(self, rows: list[Any]) -> None:
        """Take the rows of `pending` of the run before."""

    def end(self) -> None:
        """The fit is over: leave the logger as it was found. Idempotent."""


def run_of(logger: object) -> LoggerRun | None:
    """The run of a logger that is known here; None for any other."""
    for kind in type(logger).__mro__:
        found = _RUNS.get(kind.__name__)
        if found is not None and kind.__module__.startswith(_PLACES):
            module, name = found
            run: LoggerRun = getattr(import_module(f"{__package__}.{module}"), name)(logger)
            return run
    return None


def resumable(logger: object) -> bool:
    """Whether a logger is known here, and has not made its run."""
    run = run_of(logger)
    return run is not None and not run.begun


class LoggerRuns:
    """The runs of a Trainer's loggers, fit after fit; every rank has one, with runs on rank 0."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._runs: dict[str, LoggerRun] = {}
        """Those that this fit has begun, by kind and number."""
        self._resumed: set[str] = set()
        self._cuts = False
        self._saved: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has begun none."""
        return {**vars(self), "_runs": {}, "_resumed": set(), "_saved": {}}

    def begin(self, trainer: Trainer, found: FactsOfAll, note: RunNote, *, cut: bool) -> None:
        """Rank 0, when the start point is known: make the runs of loggers that have none.

        Args:
            trainer: its loggers have made no run in this fit.
            found: facts of the checkpoint that the fit goes on from; empty for none.
            note: of the runs that the fit began with, for one that was killed before it saved.
            cut: whether what was logged behind that checkpoint is logged again.
        """
        self.end()
        self._cuts = cut
        known = found or note.read()
        generators = generator_states(None)  # names of new runs are drawn from them
        try:
            self._begin(trainer, known, cut=cut)
        finally:
            restore_generators(generators, None)
        if self._runs and not found:
            note.write(self.facts())

    def _begin(self, trainer: Trainer, known: FactsOfAll, *, cut: bool) -> None:
        for name, run in _by_name(trainer) if self._enabled else ():
            facts = _checked(known.get(name), run.fields)
            if run.begun:
                if facts is not None:
                    log.warning("%s has a run of before the fit and leaves %s", name, _said(facts))
                continue
            goes_on = facts is not None and run.takes(facts)
            if facts is not None and not goes_on:
                log.warning("%s begins a new run: it cannot go on with %s", name, _said(facts))
            run.begin(facts if goes_on else None, cut=cut)
            self._runs[name] = run
            if goes_on:
                self._resumed.add(name)

    def facts(self) -> FactsOfAll:
        """Rank 0, at a save: what the manifest says of the loggers."""
        return {name: run.facts() for name, run in self._runs.items()}

    def state(self, trainer: Trainer) -> dict[str, Any]:
        """Every rank, at a save: what was logged and is in no log yet. Ranks may communicate."""
        owed = owed_row(trainer) if self._enabled and trainer.loggers else None
        pending = {name: run.pending() for name, run in self._runs.items()}
        return {
            "owed": None if owed is None else owed.to_state(),
            "pending": {name: rows for name, rows in pending.items() if rows},
        }

    def on_load(self, saved: Mapping[str, Any] | None) -> None:
        """Rank 0: note the `state` of the checkpoint that the fit goes on from."""
        self._saved = dict(saved or {})

    def on_train_start(self) -> None:
        """Rank 0, before anything is logged: log what the run before had to log next."""
        saved, self._saved = self._saved, {}
        if not self._cuts or not saved:
            return
        runs = {name: run for name, run in self._runs.items() if name in self._resumed}
        for name, run in runs.items():
            run.add_pending(list(saved["pending"].get(name, ())))
        owed = OwedRow.of_state(saved["owed"])
        if owed is not None:
            log_owed((run.logger for run in runs.values()), owed)

    def end(self) -> None:
        """Every rank, when the fit is over, or failed: leave the loggers as they were found."""
        runs, self._runs = self._runs, {}
        self._resumed, self._saved = set(), {}
        for run in runs.values():
            run.end()


class RunNote:
    """What one fit's loggers began with, in the checkpoint directory; it is news, never truth."""

    def __init__(self, root: Path, fit: str, *, read: bool) -> None:
        """`read`: whether the fit goes on with what it was before."""
        self._path = root / DOT_DIR / _NOTE
        self._fit, self._read = fit, read

    def read(self) -> FactsOfAll:
        """The facts of this fit; empty if there are none."""
        return facts_of_all(self._all().get(self._fit)) if self._read else {}

    def write(self, facts: FactsOfAll) -> None:
        """Keep the facts of this fit."""
        text = json.dumps({**self._all(), self._fit: facts})
        replace_small(self._path, text.encode("ascii"), durable=False)

    def _all(self) -> dict[str, Any]:
        try:
            found = read_json(self._path, RECORD)
        except (OSError, CheckpointCorruptError):
            return {}
        return found if isinstance(found, dict) else {}


def facts_of_all(value: object) -> FactsOfAll:
    """What a manifest, or a note, says of loggers; what is no such thing says nothing."""
    entries = value if isinstance(value, dict) else {}
    return {name: each for name, each in entries.items() if isinstance(each, dict)}


def _checked(facts: Facts | None, fields: Mapping[str, type | tuple[type, ...]]) -> Facts | None:
    """Facts that have what they must; None for others: anybody may have written them."""
    if facts is None or not all(isinstance(facts.get(n), kind) for n, kind in fields.items()):
        return None
    return facts if is_token(facts.get("token", "0" * TOKEN_CHARS)) else None


def _by_name(trainer: Trainer) -> list[tuple[str, LoggerRun]]:
    """The runs of the loggers that are known, in the order in which Lightning makes them.

    A name is a kind and a number; W&B comes first, since it follows writers of TensorBoard.
    """
    counts: Counter[str] = Counter()
    found = []
    for logger in trainer.loggers:
        run = run_of(logger)
        if run is not None:
            counts[run.kind] += 1
            found.append((f"{run.kind}-{counts[run.kind]}", run))
    return sorted(found, key=lambda pair: pair[1].kind != "wandb")


def _said(facts: Facts) -> str:
    return ", ".join(f"{n}={facts[n]}" for n in ("version", "run_id", "id") if n in facts)
