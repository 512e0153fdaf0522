"""The run of Lightning's `CSVLogger`: a directory with `metrics.csv`, a row for each call."""

from __future__ import annotations

import csv
import io
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from bt_lightning.lightning_plugin.versioned_log_dirs import VersionedLogDir
from bt_lightning.localdir.small_files import replace_small

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = ".bt_lightning-metrics.csv"
_WARNING = "Experiment logs directory .* exists and is not empty"


class CsvLoggerRun:
    """Goes on in the same file: rows are counted, since a row may have any step."""

    kind = "csv"
    fields: ClassVar = {"version": (int, str), "token": str, "rows": int, "pending": int}

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._place = VersionedLogDir(logger, self.kind)
        self._written = 0
        """Rows in the file."""

    @property
    def begun(self) -> bool:
        """As `LoggerRun.begun`."""
        return self.logger._experiment is not None

    def takes(self, facts: dict[str, Any]) -> bool:
        """As `LoggerRun.takes`."""
        return self._place.takes(facts)

    def begin(self, facts: dict[str, Any] | None, *, cut: bool) -> None:
        """As `LoggerRun.begin`. A kill at any instruction leaves the rows that are kept."""
        header: list[str] = []
        if facts is not None:
            file = self._place.path / "metrics.csv"
            kept = file.with_name(_KEPT)
            if kept.exists() and not file.exists():
                kept.replace(file)  # killed in the middle of this
            most = facts["rows"] - facts["pending"] if cut else None
            header, rows = _read(file, most)
            if header:
                replace_small(kept, _text([header, *rows]))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=_WARNING)
                writer = self.logger.experiment  # it deletes the file
            if header:
                kept.replace(file)
                self._written = len(rows)
        writer = self.logger.experiment
        writer.metrics_keys = header
        original = writer.save

        def save() -> None:
            waiting = len(writer.metrics)
            original()
            self._written += waiting - len(writer.metrics)

        vars(writer)["save"] = save
        self._place.mark()

    def facts(self) -> dict[str, Any]:
        """As `LoggerRun.facts`: `rows` in all, of which `pending` are in no file yet."""
        pending = len(self.logger.experiment.metrics)
        return {**self._place.facts(), "rows": self._written + pending, "pending": pending}

    def pending(self) -> list[Any]:
        """As `LoggerRun.pending`."""
        return [dict(row) for row in self.logger.experiment.metrics]

    def add_pending(self, rows: list[Any]) -> None:
        """As `LoggerRun.add_pending`."""
        self.logger.experiment.metrics[:0] = rows

    def end(self) -> None:
        """As `LoggerRun.end`."""
        if self.logger._experiment is not None:
            vars(self.logger._experiment).pop("save", None)


def _read(file: Path, most: int | None) -> tuple[list[str], list[list[str]]]:
    """The header and the first rows, all if `most` is None, without one that a kill has cut off."""
    try:
        with file.open(newline="") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
    except FileNotFoundError:
        return [], []
    return header, [row for row in rows[:most] if len(row) == len(header)]


def _text(rows: list[list[str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()
