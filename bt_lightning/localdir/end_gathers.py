"""Ends the gathers that an earlier run left, before a new run looks for what to resume from."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.sharding.gather_verdict import GatherVerdict, WholeGather, judge_parts

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.sharding.save_part import SaveKey

log = logging.getLogger(__name__)

_POLL_S: Final = 0.02


def end_gathers(root: Path, limit_s: float) -> None:
    """Commit the gathers that are whole, and give up the others, for whoever still waits for them.

    Waits up to `limit_s` seconds while workers of the earlier run write parts. What is given up can
    be committed by nobody any more. Called in the training process of rank 0, when no gather of its
    own run has begun. Outcomes stay until the next start, for workers that are only now told of
    their save.
    """
    place = GatherDirectory(root, -1)
    until = time.monotonic() + limit_s
    while time.monotonic() < until and any(_is_written(place, key) for key in place.found()):
        time.sleep(_POLL_S)
    for key in place.found():
        try:
            _end(place, key)
            place.retire(key)
        except (CheckpointError, OSError) as error:  # the disk is full: what is there stays unseen
            log.warning("the parts of an earlier run stay in %s: %s", place.home(key), error)


def _is_written(place: GatherDirectory, key: SaveKey) -> bool:
    """Whether a part of it is being written, and may be of use."""
    try:
        return place.outcome(key) is None and place.writing(key)
    except (CheckpointError, OSError):
        return False  # `_end` says what is wrong


def _end(place: GatherDirectory, key: SaveKey) -> None:
    if place.outcome(key) is not None:
        place.discard_late(key)
        return
    why = "a new run began before all parts were there"
    records = place.records(key)
    found = judge_parts(records, next(iter(records.values())).part) if records else None
    if isinstance(found, WholeGather):
        try:
            verdict = place.commit(key, records)
        except CheckpointError as error:
            why = str(error)
        else:
            if verdict.manifest is not None:
                log.warning("committed %s of an earlier run", verdict.manifest.checkpoint_id)
            return
    if isinstance(found, GatherVerdict):
        why = found.why
    place.give_up(key, GatherVerdict(why=why, cause="dropped"))
