"""The run of Lightning's `TensorBoardLogger`: a directory with a file of events for each start."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, ClassVar

from bt_lightning.lightning_plugin.versioned_log_dirs import VersionedLogDir, new_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LENGTH, _CRC_BYTES = struct.Struct("<QI"), 4
_WALL_TIME_TAG, _STEP_TAG = 0x09, 0x10
_NEGATIVE = 1 << 63
_STEP_AT = 9
"""A record begins with the wall time: a tag and eight bytes."""


class TensorBoardLoggerRun:
    """Goes on in the same directory; the files of killed starts are cut where the checkpoint was.

    Names of its files end with a token, so that no file of another writer is touched.
    """

    kind = "tensorboard"
    fields: ClassVar = {"version": (int, str), "token": str, "files": dict, "hyperparameters": bool}

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._place = VersionedLogDir(logger, self.kind)
        self._has_hyperparameters = False

    @property
    def begun(self) -> bool:
        """As `LoggerRun.begun`."""
        return self.logger._experiment is not None

    def takes(self, facts: dict[str, Any]) -> bool:
        """As `LoggerRun.takes`."""
        return self._place.takes(facts)

    def begin(self, facts: dict[str, Any] | None, *, cut: bool) -> None:
        """As `LoggerRun.begin`."""
        self._place.token = self._place.token or new_token()
        own: dict[str, Any] = dict(self.logger._kwargs)
        given = {**own, "filename_suffix": f"{own.get('filename_suffix', '')}.{self._place.token}"}
        self._has_hyperparameters = facts is not None and facts["hyperparameters"]
        self._log_hyperparameters_once()
        if facts is not None and cut and self._place.is_local:
            last = self._cut(facts["files"])
            given.setdefault("purge_step", last + 1)  # for a TensorBoard that has read the rest
        self.logger._kwargs = given
        try:
            _ = self.logger.experiment
        finally:
            self.logger._kwargs = own
        self._place.mark()

    def facts(self) -> dict[str, Any]:
        """As `LoggerRun.facts`: the size in bytes of each of its files."""
        self.logger.experiment.flush()
        sizes = {name: path.stat().st_size for name, path in self._files()}
        known = {"files": sizes, "hyperparameters": self._has_hyperparameters}
        return {**self._place.facts(), **known}

    def pending(self) -> list[Any]:
        """As `LoggerRun.pending`: `facts` writes all of them."""
        return []

    def add_pending(self, rows: list[Any]) -> None:
        """As `LoggerRun.add_pending`."""

    def end(self) -> None:
        """As `LoggerRun.end`."""
        vars(self.logger).pop("log_hyperparams", None)

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Its files, by their paths below the directory: its own, and those of `add_scalars`."""
        place = self._place.path
        if self._place.is_local:
            for path in (*place.glob("*tfevents*"), *place.glob("*/*tfevents*")):
                if path.name.endswith(f".{self._place.token}"):
                    yield path.relative_to(place).as_posix(), path

    def _cut(self, sizes: dict[str, Any]) -> int:
        """Leave what the files had at the checkpoint; returns the greatest step in them, or -1."""
        last = -1
        for name, path in list(self._files()):
            size = sizes.get(name)
            if size is None:
                path.unlink()  # of a start after that checkpoint
                continue
            if isinstance(size, int) and 0 <= size < path.stat().st_size:
                os.truncate(path, size)
            last = max((last, *_steps(path)))
        return last

    def _log_hyperparameters_once(self) -> None:
        """Log no second `hp_metric` at step 0; a changed value still reaches `hparams.yaml`."""
        original = self.logger.log_hyperparams

        def log_hyperparams(params: Any = None, metrics: Any = None, **more: Any) -> None:
            known, self._has_hyperparameters = self._has_hyperparameters, True
            original(params, {} if known and metrics is None else metrics, **more)

        vars(self.logger)["log_hyperparams"] = log_hyperparams


def _steps(path: Path) -> Iterator[int]:
    """The steps of the events in a file of TFRecords: length, checksum, event, checksum."""
    data = path.read_bytes()
    at = 0
    while at + _LENGTH.size <= len(data):
        size, _ = _LENGTH.unpack_from(data, at)
        begin = at + _LENGTH.size
        at = begin + size + _CRC_BYTES
        if at <= len(data):
            yield _step(data[begin : begin + size])


def _step(event: bytes) -> int:
    """Field 2 of an event, which is left out where it is 0."""
    if len(event) <= _STEP_AT or event[0] != _WALL_TIME_TAG or event[_STEP_AT] != _STEP_TAG:
        return 0
    value = shift = 0
    for byte in event[_STEP_AT + 1 :]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
            break
    return value if value < _NEGATIVE else 0
