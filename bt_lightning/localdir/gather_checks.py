"""What is looked at before a gather is committed: a verdict that is made cannot be taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    InvalidSettingError,
)
from bt_lightning.localdir.commit import refuse_nesting
from bt_lightning.localdir.fsync import make_directories
from bt_lightning.localdir.list_and_verify_checkpoints import check_sizes, read_manifest
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.sharding.gather_verdict import manifest_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.save_part import PartRecord


def manifest_of_gather(root: Path, built: Path, records: Mapping[int, PartRecord]) -> Manifest:
    """The manifest of a whole gather, whose files lie in `built`, if it can get its name.

    Called in the worker that commits, under the lock of the gathers.

    Raises:
        CheckpointExistsError: it would lie inside another checkpoint.
        InvalidSettingError: its place is on another volume.
        CheckpointCorruptError: a file is not there.
        OSError: the disk refused.
    """
    head = records[0].head
    assert head is not None
    final = root / check_checkpoint_id(head.checkpoint_id)
    refuse_nesting(final, root)
    make_directories(final.parent)
    if final.parent.stat().st_dev != built.stat().st_dev:
        msg = (
            f"{final.parent} is on another volume than {built}, and a checkpoint gets its name by a"
            " rename: give it a path on the same volume"
        )
        raise InvalidSettingError(msg)
    older = _manifest_at(final)
    manifest = manifest_of(records, 1 + (0 if older is None else older.generation))
    check_sizes(built, manifest)
    return manifest


def digest_of_checkpoint(path: Path) -> str | None:
    """The digest of the manifest in a directory; None if there is none that can be read."""
    found = _manifest_at(path)
    return None if found is None else found.digest


def share_a_directory(one: str, other: str) -> bool:
    """Whether two checkpoint ids name one directory, or one inside the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _manifest_at(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except (CheckpointCorruptError, CheckpointNotFoundError):
        return None  # what rank 0 knew still bounds the generation
