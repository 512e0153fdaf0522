"""All that the logs, the record and the checkpoints of a job tell of it, for a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.job_record_file import read_local
from bt_lightning.log_kinds import EVENTS, METRICS
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.manage.job_logs import LEFT_OUT, logged_of
from bt_lightning.manage.logger_files import series_of_loggers
from bt_lightning.manage.metric_series import metric_series, series_of_checkpoints
from bt_lightning.manage.run_history import RunHistory, run_history
from bt_lightning.manage.save_times import save_times
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.catalog.job_records import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.job_record import JobRecord
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.job_logs import Logged
    from bt_lightning.manage.metric_series import MetricSeries
    from bt_lightning.manage.save_times import SaveTimes


MetricsSource = Literal["log", "loggers", "checkpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """A job, as far as anything is left of it."""

    project: str
    job: str
    where: str
    """Directory or URL."""
    items: Sequence[CheckpointItem]
    """Committed checkpoints, newest first."""
    refused: Sequence[str]
    """Why folders that look like checkpoints are left out."""
    record: JobRecord | None
    """What the job's runner on node 0 last wrote."""
    history: RunHistory
    saves: Sequence[SaveTimes]
    """In the order in which they began."""
    metrics: dict[str, MetricSeries]
    metrics_of: MetricsSource
    """Whether they are of every logged step, as our log or the files of loggers have them, or of
    kept checkpoints only."""
    num_events: int
    num_rows: int
    other_failures: Sequence[tuple[int, float, str]]
    """(node rank, at, text) of the other nodes; all else is of the first one."""
    is_cut: bool
    """Whether parts of a log are kept no more."""


def read_job_facts(source: JobCheckpoints) -> JobFacts:
    """Read whatever is left of a job, in a store, a directory, or both.

    Raises:
        StoreError: the store refused.
    """
    items = source.items()
    events, rows = logged_of(source, EVENTS), logged_of(source, METRICS)
    return facts_of_logs(
        source,
        items,
        events,
        rows,
        logger_metrics={} if rows else series_of_loggers(source),
        record=_record(source),
        refused=list(source.refused),
    )


def facts_of_logs(  # noqa: PLR0913 - all that is read
    job: JobCheckpoints,
    items: Sequence[CheckpointItem],
    events: Sequence[Logged],
    rows: Sequence[Logged],
    *,
    logger_metrics: dict[str, MetricSeries] | None = None,
    record: JobRecord | None,
    refused: Sequence[str],
) -> JobFacts:
    """The facts of a job whose logs and checkpoints are read; both logs in the order of time.

    Metrics are those of the rows, without any those of `logger_metrics`, else of the checkpoints.
    """
    first = min((one.node_rank for one in events), default=0)
    own, own_rows = _of_node(events, first), _of_node(rows, first)
    history = run_history(own, own_rows)
    series = metric_series(own_rows, history.runs)
    nodes = sorted({one.node_rank for one in events} - {first})
    failures = [(n, *each) for n in nodes for each in run_history(_of_node(events, n)).failures]
    return JobFacts(
        project=job.project,
        job=job.job,
        where=job.name,
        items=items,
        refused=refused,
        record=record,
        history=history,
        saves=save_times(own),
        metrics=series or logger_metrics or series_of_checkpoints(items),
        metrics_of="log" if series else "loggers" if logger_metrics else "checkpoints",
        num_events=len(events),
        num_rows=len(own_rows),
        other_failures=failures,
        is_cut=any(one.event["event"] == LEFT_OUT for one in (*events, *rows)),
    )


def _of_node(logged: Sequence[Logged], node_rank: int) -> list[dict[str, Any]]:
    return [
        one.event for one in logged if one.node_rank == node_rank and one.event["event"] != LEFT_OUT
    ]


def _record(source: JobCheckpoints) -> JobRecord | None:
    stored = source.store_part if isinstance(source, JoinedCheckpoints) else source
    if isinstance(stored, StoreCheckpoints):
        try:
            return read_record(stored.store, job_prefix(stored.project, stored.job, 0))
        except CheckpointCorruptError:
            return None
    on_disk = source.directory_part if isinstance(source, JoinedCheckpoints) else source
    return read_local(on_disk.root) if isinstance(on_disk, DirectoryCheckpoints) else None
