"""Errors of a part that cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.disk_errors import advice, refused

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.sharding.save_part import SavePart
    from bt_lightning.worker_messages import CommitImage


def refusal_of_part(job: CommitImage, part: SavePart, error: Exception, root: Path) -> Exception:
    """What the trainer learns of an error of the disk; an error of ours as it is."""
    if not isinstance(error, OSError) or isinstance(error, CheckpointError):
        return error
    return refused(
        f"the part of rank {part.rank} of the checkpoint {job.checkpoint_id} could not be"
        f" written to {root} ({error.strerror or error}), so nothing of it was saved."
        f" What was committed before is untouched: {advice(root, error)}, or use"
        " another BT_CHECKPOINT_DIR",
        error,
    )


def no_room_for_part(job: CommitImage, part: SavePart, reason: str) -> str:
    """Why a part was not saved, for a `DirectoryFullError`."""
    return (
        f"the part of rank {part.rank} of the checkpoint {job.checkpoint_id} was not saved, so"
        f" nothing of it was: {reason}. Parts of sharded checkpoints are not sent to the store"
        " instead where all ranks share a directory. What was committed before is untouched: free"
        " some space, keep fewer checkpoints (save_top_k), or raise the budget (BT_VOLUME_SIZE_GIB)"
    )
