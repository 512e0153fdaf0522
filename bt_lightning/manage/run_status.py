"""What a run is doing just now, as its directory tells: its saves, its disk, its uploads."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.local_checkpoints import list_committed
from bt_lightning.localdir.upload_status import read_uploading

if TYPE_CHECKING:
    from pathlib import Path

_ARENAS = 3
"""No more saves than these are under way at a time."""
_FOREVER_MS = 1e12
_ENDS = ("durable", "streamed", "refused")
"""Events after which a save is in memory no more."""
_LIVE_S = 10
"""A worker that is gone, or silent for so long in an upload, is not uploading."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload that is under way."""

    checkpoint: str
    bytes_done: int
    bytes_total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second, so far."""
        return self.bytes_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds that it takes still, at that rate; None while nothing is known of it."""
        return (self.bytes_total - self.bytes_done) / self.rate if self.rate else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One look at a run."""

    directory: str
    at: float
    """Seconds of the epoch."""
    saves: int
    skipped: int
    """Saves that gave way to others, so that training went on."""
    last_save: dict[str, Any] | None
    """The newest `save` event."""
    staged: int
    """Saves that began and are not on the disk yet, so far as events tell."""
    checkpoints: int
    damaged: int
    disk_bytes: int
    disk_free: int
    newest: str | None
    published: int
    """Uploads that were finished, since the directory began."""
    uploads: bool
    """Whether a worker ever uploaded from here."""
    upload: Upload | None
    waiting: int
    error: str
    stall_s: float
    """What saves cost training in all, seconds."""


def run_status(root: Path) -> Status:
    """Look at the run of a checkpoint directory. Called by the command line; reads only."""
    events = _events(root)
    saves = [event for event in events if event["event"] == "save"]
    durable = [event for event in events if event["event"] in _ENDS]
    listed = list_committed(root)
    said = read_uploading(root)
    now = time.time()
    upload = None
    if said is not None and said.checkpoint and said.alive and now - said.at < _LIVE_S:
        seconds = max(now - said.began, 1e-9)
        upload = Upload(said.checkpoint, said.bytes_done, said.bytes_total, seconds)
    newest = listed.found[0] if listed.found else None
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
        uploads=said is not None,
        upload=upload,
        waiting=said.waiting if said is not None else 0,
        error=said.error if said is not None else "",
        stall_s=math.fsum(_stall(event) for event in saves),
    )


def _events(root: Path) -> list[dict[str, Any]]:
    try:
        return list(read_events(root))
    except (FileNotFoundError, CheckpointCorruptError):
        return []  # none were written, or what has their name is no file


def _is_staged(save: dict[str, Any], durable: list[dict[str, Any]]) -> bool:
    """Whether a save is in memory only. Numbers begin anew with each run; times do not."""
    if save.get("decision") in ("skipped", "replaced", "refused"):
        return False
    began = save.get("began")
    began = began if isinstance(began, int | float) else save["at"]
    return not any(
        event.get("checkpoint") == save.get("checkpoint_id") and event["at"] >= began
        for event in durable
    )


def _stall(event: dict[str, Any]) -> float:
    """Seconds for which training stood still in a save."""
    parts = (event.get(name, 0.0) for name in ("call_ms", "guard_ms"))
    known = (part for part in parts if isinstance(part, int | float) and abs(part) < _FOREVER_MS)
    return math.fsum(known) / 1000
