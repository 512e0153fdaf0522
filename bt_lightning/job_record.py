"""The record of one node of a job (status, attempts, uploads), and requests to stop it. Pure.

The words are Baseten's: `status` is its `TRAINING_JOB_...` without that prefix.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD as RECORD_BOUNDS
from bt_lightning.file_limits import parse_json
from bt_lightning.path_layout import MOST_RANKS

Status = Literal["CREATED", "RUNNING", "COMPLETED", "FAILED", "STOPPED"]
Sync = Literal["SYNCING", "COMPLETED"]
RECORD: Final = ".bt_lightning-job"
"""File name below the job's `rank-<node>` in a store; a dot name, so no checkpoint has it."""
STOP_REQUEST: Final = ".bt_lightning-stop"
"""File name, in the same place, of a request that the runner stops."""
_FORMAT: Final = 1
_MAX_ATTEMPTS: Final = 200
"""Number of attempts that are kept: the newest."""
_ARGUMENTS_BYTES: Final = 64 * 1024
"""Bytes of arguments that are kept: all of them, or none."""
_WAITING_BYTES: Final = 256 * 1024
"""Bytes of waiting names that are kept: readers refuse a record of more than 1 MiB."""


_YEAR_S: Final = 366 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of the job's commands."""

    number: int
    """Number from 0: its `BT_RETRY_COUNT`."""
    started_at: str
    """ISO 8601, UTC."""
    ended_at: str | None = None
    exit_code: int | None = None
    """Exit code of the command; None while it runs, or if a signal ended it."""
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
    """`COMPLETED` when everything on the disk is in the store as well; None: no store."""
    created_at: str
    updated_at: str
    """When the runner last updated the record."""
    ended_at: str | None = None
    attempts: tuple[Attempt, ...] = ()
    newest_checkpoint: str | None = None
    newest_step: int | None = None
    waiting: tuple[str, ...] = ()
    """What was on the disk and not in the store when the job ended."""
    run: str = ""
    """Id of this start of the runner: a `StopRequest` names it. Empty: it takes no requests."""
    stop_asked_by: str | None = None
    """Who asked this run to stop, once it knows."""
    arguments: tuple[str, ...] = ()
    """Those of `bt-lightning run`, without the job's id and places; secrets are `***`. Empty: they
    are not known."""
    withheld: bool = False
    """Whether a secret of the arguments was left out."""
    directory: str = ""
    """Where it was started."""
    checkpoint_dir: str = ""

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.status in {"COMPLETED", "FAILED", "STOPPED"}

    def knows_more_than(self, other: JobRecord) -> bool:
        """Whether this record of the same job is the newer: the other may be an old copy."""
        return self._recency > other._recency

    @property
    def _recency(self) -> tuple[int, str]:
        return max((one.number for one in self.attempts), default=-1), self.updated_at

    def to_bytes(self) -> bytes:
        """The record as one line of ASCII JSON."""
        payload = {"format": _FORMAT, **asdict(self)}
        payload["attempts"] = payload["attempts"][-_MAX_ATTEMPTS:]
        payload["waiting"] = _names_within(self.waiting, _WAITING_BYTES)
        if len(_names_within(self.arguments, _ARGUMENTS_BYTES)) < len(self.arguments):
            payload["arguments"] = ()
        return json.dumps(payload, sort_keys=True).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> JobRecord:
        """Parse a record; unknown keys are ignored.

        Raises:
            CheckpointCorruptError: it is no valid record.
        """
        try:
            payload = parse_json(data, RECORD_BOUNDS)
            attempts = tuple(
                Attempt(**_known_fields(Attempt, one)) for one in payload.pop("attempts", ())
            )
            waiting = tuple(map(str, payload.pop("waiting", ())))
            arguments = tuple(map(str, payload.pop("arguments", ())))
            known = _known_fields(cls, payload)
            record = cls(**known, attempts=attempts, waiting=waiting, arguments=arguments)
        except (ValueError, TypeError, AttributeError) as error:
            msg = f"the record of the job at {where} cannot be read: {type(error).__name__}"
            raise CheckpointCorruptError(msg) from error
        if record.status not in get_args(Status) or not isinstance(record.created_at, str):
            msg = f"the record of the job at {where} has the status {record.status!r:.50}"
            raise CheckpointCorruptError(msg)
        if type(record.group_size) is not int or not 0 <= record.group_size <= MOST_RANKS:
            msg = f"the record of the job at {where} has {record.group_size!r:.50} nodes"
            raise CheckpointCorruptError(msg)
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest:
    """A request that one run of a job ends; a later run of the job is not meant."""

    run: str
    """`JobRecord.run` of the runner."""
    by: str
    """Who asks, for messages."""
    at: str
    """ISO 8601, UTC."""
    grace_s: float | None = None
    """Seconds until the job's processes are killed; None: they may take as long as they need."""

    def to_bytes(self) -> bytes:
        """One line of ASCII JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> StopRequest | None:
        """Parse a request; None if it is none: anybody may have written the file."""
        try:
            payload = parse_json(data, RECORD_BOUNDS)
            request = cls(**_known_fields(cls, payload))
        except (ValueError, TypeError, AttributeError):
            return None
        texts = (request.run, request.by, request.at)
        seconds = request.grace_s
        valid = seconds is None or (type(seconds) in (int, float) and 0 <= seconds < _YEAR_S)
        return request if valid and all(type(text) is str for text in texts) else None


def _names_within(names: tuple[str, ...], limit: int) -> list[str]:
    """The first of `names`, up to `limit` bytes of JSON."""
    kept = []
    for name in names:
        limit -= len(json.dumps(name)) + 2
        if limit < 0:
            break
        kept.append(name)
    return kept


def _known_fields(kind: type[Any], payload: dict[str, Any]) -> dict[str, Any]:
    return {field.name: payload[field.name] for field in fields(kind) if field.name in payload}
