"""The status of a run, read from its checkpoint directory: saves, disk and uploads."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.checkpoints_of_fit import of_newest_fit
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.localdir.held_images import held_images
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.upload_status import read_uploading
from bt_lightning.log_kinds import EVENTS, METRICS
from bt_lightning.manage.run_history import run_history, stall_s

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.log_kinds import LogKind
    from bt_lightning.manage.run_history import RunHistory

_ARENAS = 3
"""Saves that can be under way at a time."""
_ENDS = ("durable", "streamed", "refused")
"""Events that end a save's time in memory."""
_NAMED = 8
_STALE_S = 10
"""A worker that is silent for so long in an upload counts as gone."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload that is under way."""

    checkpoint: str
    bytes_done: int
    bytes_total: int
    seconds: float
    """Seconds that `bytes_done` took."""
    since_s: float = 0.0
    """Seconds since the worker said so."""

    @property
    def rate(self) -> float:
        """Mean bytes a second so far."""
        return self.bytes_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at that rate, which fall between two words of the worker as well.

        None while the rate is not known.
        """
        if not self.rate:
            return None
        return max(0.0, (self.bytes_total - self.bytes_done) / self.rate - self.since_s)


@dataclass(frozen=True, slots=True)
class Gathering:
    """A sharded save of which not all ranks' parts are there yet."""

    checkpoint: str
    """Empty until rank 0's part is there."""
    parts: int
    ranks: int
    missing: tuple[int, ...]
    """The first ranks whose parts are not there."""


@dataclass(frozen=True, slots=True)
class Held:
    """A save in the memory of a killed run's worker, for the next start on this machine."""

    checkpoint: str
    size: int
    """Bytes."""
    left_s: float
    """Seconds until the worker ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The status of a run at one time."""

    directory: str
    at: float
    """Seconds of the epoch."""
    saves: int
    skipped: int
    """Saves that were skipped or replaced, so that training did not wait."""
    last_save: dict[str, Any] | None
    """The newest `save` event."""
    staged: int
    """Saves that began and are not on the disk yet, by the events."""
    checkpoints: int
    damaged: int
    disk_bytes: int
    disk_free: int
    newest: str | None
    published: int
    """Uploads finished, over all runs of the directory."""
    uploads: bool
    """Whether a worker ever uploaded from the directory."""
    upload: Upload | None
    waiting: int
    error: str
    stall_s: float
    """Seconds that training waited for saves, in all."""
    gathering: tuple[Gathering, ...] = ()
    """Sharded saves under way, whose parts meet in this directory."""
    held: tuple[Held, ...] = ()
    """One for each worker of the killed run."""
    history: RunHistory | None = None
    """What the logs in the directory tell; those of a lost disk are in the store only."""
    given_up: str = ""
    """Why the newest sharded save is not committed, if it was given up."""


def run_status(root: Path) -> Status:
    """Read the status of a checkpoint directory. Called by the command line; changes nothing."""
    events = _events(root)
    saves = [event for event in events if event["event"] == "save"]
    durable = [event for event in events if event["event"] in _ENDS]
    listed = list_committed(root)
    uploading = read_uploading(root)
    now = time.time()
    upload = None
    if (
        uploading is not None
        and uploading.checkpoint
        and uploading.alive
        and now - uploading.at < _STALE_S
    ):
        seconds = max(uploading.at - uploading.began, 1e-9)
        upload = Upload(
            uploading.checkpoint,
            uploading.bytes_done,
            uploading.bytes_total,
            seconds,
            max(0.0, now - uploading.at),
        )
    gathering, given_up = _gathers(root)
    newest = next(iter(of_newest_fit(listed.found, lambda one: one.manifest)), None)
    return Status(
        directory=str(root),
        at=now,
        saves=len(saves),
        skipped=sum(event.get("decision") in ("skipped", "replaced") for event in saves),
        last_save=saves[-1] if saves else None,
        staged=sum(_is_staged(event, durable) for event in saves[-_ARENAS:]),
        checkpoints=len(listed.found),
        damaged=len(listed.refused),
        disk_bytes=sum(checkpoint.manifest.size for checkpoint in listed.found),
        disk_free=shutil.disk_usage(root).free,
        newest=newest.manifest.checkpoint_id if newest else None,
        published=sum(event["event"] == "published" for event in events),
        uploads=uploading is not None,
        upload=upload,
        waiting=uploading.waiting if uploading is not None else 0,
        error=uploading.error if uploading is not None else "",
        stall_s=sum(map(stall_s, saves)),
        gathering=gathering,
        held=tuple(
            Held(image.checkpoint_id, image.size, max(0.0, image.until - now))
            for image in held_images(root)
        ),
        history=run_history(events, _events(root, METRICS)),
        given_up=given_up,
    )


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _gathers(root: Path) -> tuple[tuple[Gathering, ...], str]:
    """The sharded saves that are under way, and why the newest was given up."""
    place = GatherDirectory(root, rank=-1)
    found, given_up = [], ""
    for key in sorted(place.found(), key=lambda key: _changed(place.home(key))):
        try:
            verdict = place.outcome(key)
            records = place.records(key) if verdict is None else {}
        except (CheckpointCorruptError, OSError):
            continue  # it changes while it is looked at
        if verdict is not None:
            given_up = verdict.why
        elif records:
            some = next(iter(records.values())).part
            missing = [rank for rank in range(some.world_size) if rank not in records]
            head = records[0].head if 0 in records else None
            name = head.checkpoint_id if head is not None else ""
            few = tuple(missing[:_NAMED])
            found.append(Gathering(name, len(records), some.world_size, few))
    return tuple(found), given_up


def _events(root: Path, kind: LogKind = EVENTS) -> list[dict[str, Any]]:
    try:
        return list(read_events(root, kind=kind))
    except (FileNotFoundError, CheckpointCorruptError):
        return []  # there is no event file, or it is not readable


def _is_staged(save: dict[str, Any], durable: list[dict[str, Any]]) -> bool:
    """Whether a save is in memory only. Save numbers restart with each run; times do not."""
    if save.get("decision") in ("skipped", "replaced", "refused"):
        return False
    began = save.get("began")
    began = began if isinstance(began, int | float) else save["at"]
    return not any(
        event.get("checkpoint") == save.get("checkpoint_id") and event["at"] >= began
        for event in durable
    )
