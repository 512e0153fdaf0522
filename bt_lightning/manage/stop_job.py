"""Asking the runners of a job to stop, and looking at how they do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.iso_time import moment
from bt_lightning.job_record import JobRecord, StopRequest
from bt_lightning.localdir.job_record_file import ask_to_stop_local, read_local
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.catalog.job_records import read_record, write_stop_request
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.store.interface import Store

SILENT_S: Final = 180.0
"""A runner writes its record once a minute: after so many seconds it is probably gone."""
_READERS: Final = 16


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a job: its runner's record, and how to reach the runner."""

    rank: int
    record: JobRecord
    read: Callable[[], JobRecord | None]
    """Reads the record again."""
    ask: Callable[[StopRequest], None]
    """Leaves a request for the runner."""

    @property
    def takes_requests(self) -> bool:
        """Whether the runner looks for requests: earlier versions do not."""
        return bool(self.record.run)


def nodes_in_store(store: Store, project: str, job: str) -> list[Node]:
    """The nodes of a job of a store whose runners have written a record.

    Raises:
        CheckpointCorruptError: the record of node 0 is damaged.
        StoreError: the store refused.
    """

    def node(rank: int, record: JobRecord) -> Node:
        prefix = job_prefix(project, job, rank)
        return Node(
            rank,
            record,
            lambda: _read(store, prefix),
            lambda request: write_stop_request(store, prefix, request),
        )

    first = read_record(store, job_prefix(project, job, 0))
    if first is None:
        return []
    nodes = [node(0, first)]
    ranks = range(1, first.group_size)
    records = in_parallel(
        lambda rank: _read(store, job_prefix(project, job, rank)), ranks, _READERS
    )
    found = zip(ranks, records, strict=True)
    return nodes + [node(rank, record) for rank, record in found if record is not None]


def node_of_directory(root: Path) -> list[Node]:
    """The node whose runner has the directory; none if no runner wrote a record there."""
    record = read_local(root)
    if record is None:
        return []
    return [
        Node(
            record.node_rank,
            record,
            lambda: read_local(root),
            lambda request: ask_to_stop_local(root, request),
        )
    ]


def ask_to_stop(node: Node, by: str, grace_s: float | None) -> None:
    """Ask the runner of a node to stop the run that its record is of.

    Raises:
        OSError, StoreError: the request could not be written.
    """
    now = datetime.now(timezone.utc).isoformat()
    node.ask(StopRequest(run=node.record.run, by=by, at=now, grace_s=grace_s))


def has_ended(node: Node, now: JobRecord | None) -> bool:
    """Whether the run of a node is over, by its record `now`; another run of the job may go on."""
    return now is not None and (now.over or now.run != node.record.run)


def silent_s(updated_at: str | None, now: datetime) -> float:
    """Seconds since a runner wrote its record, by the clocks of both machines; 0: not known."""
    try:
        return max(0.0, (now - moment(updated_at or "")).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _read(store: Store, prefix: str) -> JobRecord | None:
    try:
        return read_record(store, prefix)
    except CheckpointCorruptError:
        return None
