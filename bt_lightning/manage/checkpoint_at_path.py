"""The checkpoint that a path on the disk names: a folder, of whatever program, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.checkpoint_formats.tensor_file_checks import is_checkpoint_name
from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.manage.checkpoint_items import find
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.path_layout import MANIFEST
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.find_target import Target


def source_at_path(target: Target, name: str) -> tuple[JobCheckpoints, CheckpointItem] | None:
    """The checkpoint at the path `name`; None if `name` is an id, or a URL.

    A relative path counts as one if it begins with `./` or `../`, or names a file of tensors, or if
    no directory or store is named.

    Raises:
        CheckpointNotFoundError: what is there is no whole checkpoint.
    """
    explicit = name.startswith(("/", "~", "./", "../")) or is_checkpoint_name(name)
    if is_bt(name) or not (explicit or not (target.directory or target.store)):
        return None
    try:
        path = Path(name).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, or an unknown user
        return None
    if is_file:
        return _file(path.resolve())
    return _folder(path.resolve()) if is_folder else None


def _folder(path: Path) -> tuple[JobCheckpoints, CheckpointItem]:
    source = DirectoryCheckpoints(path)
    for item in source.items():
        if item.name == ".":
            return source, item
    why = "".join(f"; {reason}" for reason in source.refused)
    held = [item.name for item in source.items()]
    more = f"; it holds {', '.join(held[:5])}: name one, or `list` them" if held else ""
    msg = f"no committed checkpoint at {path}: it has no {MANIFEST}, and no known layout{why}{more}"
    raise CheckpointNotFoundError(msg)


def _file(path: Path) -> tuple[JobCheckpoints, CheckpointItem]:
    source = DirectoryCheckpoints(path.parent, only=path.name)
    if not source.items():
        why = "; ".join(source.refused) or "it is of no known layout"
        msg = f"no checkpoint at {path}: {why}"
        raise CheckpointNotFoundError(msg)
    return source, find(source, source.items()[0].name)
