"""Metrics from the CSV files of loggers (`CSVLogger`), for jobs without rows of our own."""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.localdir.find_job_files import find_job_files
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.manage.job_files import job_files
from bt_lightning.manage.metric_series import metric_series, taken_over

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.manage.checkpoint_items import JobCheckpoints
    from bt_lightning.manage.metric_series import MetricSeries
    from bt_lightning.store.interface import Store

_NAME: Final = "metrics.csv"
_MOST_BYTES: Final = 32 * 1024 * 1024
"""Of a larger file only the beginning is read."""
_MOST_FILES: Final = 32
_DIGITS: Final = 18
_STEP, _NO_METRICS = "step", ("", "step", "epoch")


def series_of_loggers(source: JobCheckpoints) -> dict[str, MetricSeries]:
    """The metrics in the CSV files of a job's loggers, by name; what is no such file is skipped.

    Files are taken in the order of their paths, numbers by value: of a metric that several have,
    the later one counts from its first step on.

    Raises:
        StoreError: the store refused.
    """
    found: dict[str, MetricSeries] = {}
    for data in _files(source):
        taken_over(found, metric_series(rows_of_csv(data.decode("utf-8", "replace"))))
    return found


def rows_of_csv(text: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file with a column `step`: `step`, `values`; without one, none."""
    reader = csv.reader(io.StringIO(text.replace("\0", ""), newline=""))
    try:
        names = next(reader, [])
        if _STEP not in names:
            return
        for cells in reader:
            fields = dict(zip(names, cells, strict=False))
            step = _number(fields.get(_STEP))
            if step is None or step != step // 1:
                continue
            numbers = {n: _number(v) for n, v in fields.items() if n not in _NO_METRICS}
            yield {"step": int(step), "values": {n: v for n, v in numbers.items() if v is not None}}
    except csv.Error:
        return  # what is no CSV ends the rows


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _files(source: JobCheckpoints) -> Iterator[bytes]:
    stored = source.store_part if isinstance(source, JoinedCheckpoints) else source
    on_disk = source.directory_part if isinstance(source, JoinedCheckpoints) else source
    if isinstance(on_disk, DirectoryCheckpoints):
        paths = find_job_files(on_disk.root, lambda path: path.rpartition("/")[2] == _NAME).files
        for path in sorted(paths, key=_by_number)[-_MOST_FILES:]:
            try:
                descriptor = open_regular(on_disk.root / path)
            except (OSError, CheckpointCorruptError):
                continue  # it has just gone
            with os.fdopen(descriptor, "rb") as file:
                yield file.read(_MOST_BYTES)
    elif isinstance(stored, StoreCheckpoints):
        yield from _stored_files(stored.store, stored.project, stored.job)


def _stored_files(store: Store, project: str, job: str) -> Iterator[bytes]:
    try:
        files = job_files(store, project, job, Patterns(include=(f"**/{_NAME}",)))
    except CheckpointNotFoundError:
        return
    first = [file for file in files if file.node_rank == files[0].node_rank]
    for file in sorted(first, key=lambda file: _by_number(file.path))[-_MOST_FILES:]:
        if not file.size:
            continue
        data = bytearray(min(file.size, _MOST_BYTES))
        try:
            store.read_into(file.key, 0, memoryview(data))
        except CheckpointNotFoundError:
            continue  # it has just gone
        yield bytes(data)


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sort key: `version_10` comes after `version_9`."""
    words = path.replace("_", "/").replace("-", "/").split("/")
    is_number = [word.isascii() and word.isdigit() and len(word) <= _DIGITS for word in words]
    return [(int(w) if number else -1, w) for w, number in zip(words, is_number, strict=True)]
