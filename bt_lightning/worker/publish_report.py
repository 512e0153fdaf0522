"""The event and the log entry of a checkpoint that was published to the store."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from bt_lightning.localdir.event_log import note
from bt_lightning.worker_messages import Published

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manifest import Manifest


def published_event(root: Path, manifest: Manifest, started: float) -> Published:
    """Log the publication that began at `started`, by `time.monotonic`; return its event."""
    event = Published(
        checkpoint_id=manifest.checkpoint_id,
        digest=manifest.digest,
        size=manifest.size,
        seconds=time.monotonic() - started,
        remote_durable_s=time.time() - manifest.created.timestamp(),
    )
    note_published(root, event)
    return event


def note_published(root: Path, event: Published) -> None:
    """Log that the store has a checkpoint, in `events.jsonl`."""
    with contextlib.suppress(OSError):  # an event is no checkpoint
        note(
            root,
            "published",
            checkpoint=event.checkpoint_id,
            bytes=event.size,
            publish_s=event.seconds,
            remote_durable_s=event.remote_durable_s,
        )
