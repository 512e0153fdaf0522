"""What a manifest says of a checkpoint that another program wrote."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.manifest import ManifestFacts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.checkpoint_formats.results import Whole
    from bt_lightning.localdir.find_job_files import Stamp

_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 9998


def facts_of_foreign(whole: Whole, stamps: Iterable[Stamp]) -> ManifestFacts:
    """The facts of a whole checkpoint, whose files have these stamps."""
    origin: dict[str, Any] = {"format": whole.format}
    if whole.base_model is not None:
        origin["base_model"] = whole.base_model
    if whole.adapter:
        origin["adapter"] = True
    return ManifestFacts(
        step=whole.step,
        epoch=whole.epoch,
        created_at=_moment_of(max(stamp.mtime_ns for stamp in stamps)),
        metrics=whole.metrics,
        origin=origin,
        resumable=whole.resumable,
    )


def _moment_of(mtime_ns: int) -> str:
    """When the last file was written: the same again, if the files are committed anew."""
    try:
        time = datetime.fromtimestamp(mtime_ns / 1e9, timezone.utc)
    except (OverflowError, OSError, ValueError):
        time = datetime.fromtimestamp(0, timezone.utc)
    if not _FIRST_YEAR <= time.year <= _LAST_YEAR:
        time = datetime.fromtimestamp(0, timezone.utc)
    return time.isoformat(timespec="microseconds")
