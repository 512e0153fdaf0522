"""When each save of a job began, and when it was durable where, from the job's events. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.manage.metric_series import number_of
from bt_lightning.manage.run_history import MOST_STEPS, stall_s

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_S: Final = 1e9
_DURABLE: Final = ("durable", "streamed", "published")


@dataclass(slots=True, kw_only=True)
class SaveTimes:
    """One save; times are seconds of the epoch, None: not known, or not yet."""

    checkpoint: str
    began_at: float
    step: int | None = None
    decision: str = ""
    """Empty: nobody was left to say what became of the save, but a worker had it."""
    stall_s: float | None = None
    """Seconds that training waited for it."""
    size: float | None = None
    """Bytes of its files."""
    disk_at: float | None = None
    disk_s: float | None = None
    """Seconds from its begin until it was durable on the disk, by its worker's clock."""
    store_at: float | None = None
    store_s: float | None = None
    """The same, in the store."""
    is_streamed: bool = False
    """Sent to the store alone, for lack of room on the disk."""


def save_times(events: Sequence[dict[str, Any]]) -> list[SaveTimes]:
    """The saves that the events of a job's node 0 tell, in the order in which they began.

    A checkpoint that a restart saves again is a save of its own. A save of a process that was
    killed is known by its worker's events.
    """
    by_name: dict[str, list[SaveTimes]] = {}
    for event in events:
        if event.get("event") == "save":
            saved = _of_event(event)
            by_name.setdefault(saved.checkpoint, []).append(saved)
    for saves in by_name.values():
        saves.sort(key=lambda save: save.began_at)
    for event in sorted(events, key=lambda event: number_of(event.get("at"))):
        name = event.get("checkpoint")
        if event.get("event") in _DURABLE and isinstance(name, str):
            _note_end(by_name.setdefault(name, []), name, event)
    return sorted((one for saves in by_name.values() for one in saves), key=lambda s: s.began_at)


def _of_event(event: dict[str, Any]) -> SaveTimes:
    at, began = number_of(event.get("at")), number_of(event.get("began"))
    name, step = event.get("checkpoint_id"), event.get("step")
    size = number_of(event.get("bytes"))
    has_step = isinstance(step, int) and not isinstance(step, bool) and abs(step) <= MOST_STEPS
    return SaveTimes(
        checkpoint=str(name or ""),
        began_at=began if 0 <= began <= at else at,
        step=step if has_step else None,
        decision=str(event.get("decision") or ""),
        stall_s=stall_s(event),
        size=size if size > 0 and math.isfinite(size) else None,
    )


def _note_end(saves: list[SaveTimes], name: str, event: dict[str, Any]) -> None:
    """Find the save that an event of a worker is about, and note what it says."""
    kind, at = event["event"], number_of(event.get("at"))
    on_disk = kind == "durable"
    earlier = [one for one in saves if one.began_at <= at]
    is_open = (
        one for one in reversed(earlier) if (one.disk_at if on_disk else one.store_at) is None
    )
    save = next(is_open, None)
    if save is None and earlier and not on_disk:
        return  # sent once more
    took = number_of(event.get("local_durable_s" if on_disk else "remote_durable_s"))
    if save is None:
        save = SaveTimes(checkpoint=name, began_at=at - took if 0 <= took <= at else at)
        saves.append(save)
        saves.sort(key=lambda save: save.began_at)
    seconds = took if 0 <= took < _LONGEST_S else at - save.began_at
    if on_disk:
        save.disk_at, save.disk_s = at, seconds
    else:
        save.store_at, save.store_s = at, seconds
        save.is_streamed = kind == "streamed"
    size = number_of(event.get("bytes"))
    if 0 <= size < math.inf:
        save.size = size
