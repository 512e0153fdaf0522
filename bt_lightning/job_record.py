"""What is written down of one node of a job: its state, its attempts, what of it is durable. Pure.

The words are Baseten's: `status` is its `TRAINING_JOB_...` without that prefix.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD as RECORD_BOUNDS
from bt_lightning.file_limits import parse_json

Status = Literal["CREATED", "RUNNING", "COMPLETED", "FAILED", "STOPPED"]
Sync = Literal["SYNCING", "COMPLETED"]
RECORD: Final = ".bt_lightning-job"
"""Its name below the job's `rank-<node>` in a store; a dot name, so it is no checkpoint's."""
_FORMAT: Final = 1
_LONGEST: Final = 200
"""Attempts that are kept, the newest."""
_WAITING_BYTES: Final = 256 * 1024
"""Of what waits, the first names: a reader takes no record of more than 1 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of the job's commands."""

    number: int
    """From 0: its `BT_RETRY_COUNT`."""
    started_at: str
    """ISO 8601, UTC."""
    ended_at: str | None = None
    exit_code: int | None = None
    """Of the command; None while it runs, and if it was ended by a signal."""
    signal: int | None = None
    outcome: str = ""
    """Why it ended: `done`, `failed`, `preempted`, `stopped`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One node of a job, as its runner last wrote it; times are ISO 8601, UTC."""

    project: str
    job_id: str
    job_name: str
    node_rank: int
    group_size: int
    """Nodes of the job."""
    host: str
    status: Status
    checkpoint_sync_status: Sync | None
    """`COMPLETED` when everything that is on the disk is in the store as well; None: no store."""
    created_at: str
    updated_at: str
    """When the runner last showed life."""
    ended_at: str | None = None
    attempts: tuple[Attempt, ...] = ()
    newest_checkpoint: str | None = None
    newest_step: int | None = None
    waiting: tuple[str, ...] = ()
    """What was on the disk and not in the store when the job ended."""

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.status in {"COMPLETED", "FAILED", "STOPPED"}

    def knows_more_than(self, other: JobRecord) -> bool:
        """Whether this one of the same job is the newer: one may not have reached its store."""
        return self._age > other._age

    @property
    def _age(self) -> tuple[int, str]:
        return max((one.number for one in self.attempts), default=-1), self.updated_at

    def to_bytes(self) -> bytes:
        """JSON, ASCII, a line."""
        said = {"format": _FORMAT, **asdict(self)}
        said["attempts"] = said["attempts"][-_LONGEST:]
        said["waiting"] = _first(self.waiting, _WAITING_BYTES)
        return json.dumps(said, sort_keys=True).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> JobRecord:
        """Read one; keys that nobody knows are left out.

        Raises:
            CheckpointCorruptError: it is none.
        """
        try:
            said = parse_json(data, RECORD_BOUNDS)
            attempts = tuple(Attempt(**_known(Attempt, one)) for one in said.pop("attempts", ()))
            waiting = tuple(str(name) for name in said.pop("waiting", ()))
            record = cls(**_known(cls, said), attempts=attempts, waiting=waiting)
        except (ValueError, TypeError, AttributeError) as error:
            msg = f"the record of the job at {where} cannot be read: {type(error).__name__}"
            raise CheckpointCorruptError(msg) from error
        if record.status not in get_args(Status) or not isinstance(record.created_at, str):
            msg = f"the record of the job at {where} has the status {record.status!r:.50}"
            raise CheckpointCorruptError(msg)
        return record


def _first(names: tuple[str, ...], limit: int) -> list[str]:
    """The first of `names`, as many as have `limit` bytes in JSON."""
    kept = []
    for name in names:
        limit -= len(json.dumps(name)) + 2
        if limit < 0:
            break
        kept.append(name)
    return kept


def _known(kind: type[Any], said: dict[str, Any]) -> dict[str, Any]:
    return {field.name: said[field.name] for field in fields(kind) if field.name in said}
