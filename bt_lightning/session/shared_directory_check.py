"""Checks that every rank sees the same checkpoint and checkpoint directory as rank 0."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    InvalidSettingError,
)
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.fsync import sync_directory
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.session.checkpoint_paths import is_committed, is_url, local_path

if TYPE_CHECKING:
    from bt_lightning.session.ranks import Ranks

log = logging.getLogger(__name__)

_SHOWN = 8
_LOOK_S: Final = 0.1
_VISIBLE_S: Final = 5.0
"""Seconds within which a file that one node made is seen on another that shares the directory."""
PartsMeet = Literal["directory", "store"]
"""Where the parts of sharded saves meet."""


@dataclass(frozen=True, slots=True)
class ResumedFrom:
    """The checkpoint to resume from, as rank 0 sees it."""

    digest: str | None = None
    """Digest of its manifest; None for a stock file."""
    stored: bool = False
    """Whether the ranks read it from the store instead of the disk."""


def check_same_view(
    ranks: Ranks, path: str | None, chosen: ResumedFrom, marker: str | None
) -> None:
    """Called by every rank: check that all can read the checkpoint, before any rank loads it.

    A rank that cannot would fail alone, while the others wait for it. `marker` is the path of a
    file that rank 0 created in the checkpoint directory; a rank without it could not resume there.

    Raises:
        CheckpointNotFoundError: on every rank, if only some of them see the checkpoint.
    """
    if ranks.world_size == 1:
        return
    mine = {
        "host": socket.gethostname(),
        "path": path,
        "sees": path is None or chosen.stored or is_url(path) or _can_see(path, chosen.digest),
        "shares": marker is None or Path(marker).exists(),
    }
    views: list[dict[str, Any]] = [json.loads(view) for view in ranks.gather(json.dumps(mine))]
    _compare(views)
    not_shared = [rank for rank, view in enumerate(views) if not view["shares"]]
    if not_shared and ranks.is_zero:
        log.warning(
            "%s not see the checkpoint directory of rank 0 (host %s). This run goes on, but a"
            " restart of it will be refused: let all nodes share the directory, a volume that is"
            " mounted at one path on each of them",
            _named(not_shared, views, "does", "do"),
            views[0]["host"],
        )


def where_parts_meet(ranks: Ranks, root: Path, *, stored: bool) -> PartsMeet:
    """Called by every rank at the start of a fit of a sharded strategy: where parts can meet.

    Rank 0 makes a file in the checkpoint directory. If all ranks see it, there is one directory.
    Else each node has a directory of its own, and the store is needed.

    Args:
        ranks: all ranks.
        root: the checkpoint directory, under the path that every rank has it.
        stored: whether there is a store; what rank 0 says counts.

    Raises:
        InvalidSettingError: on every rank, if not all share the directory and there is no store.
        DirectoryUnusableError: on every rank, if rank 0 cannot write to the directory.
    """
    if ranks.world_size == 1:
        return "directory"
    mark, has_store = ranks.from_zero(lambda: (_make_mark(root), stored))
    try:
        views = [json.loads(view) for view in ranks.gather(json.dumps(_view_of(Path(mark))))]
    finally:
        if ranks.is_zero:
            Path(mark).unlink(missing_ok=True)
    apart = [rank for rank, view in enumerate(views) if not view["shares"]]
    if not apart:
        return "directory"
    if has_store:
        return "store"
    msg = (
        f"{_named(apart, views, 'does', 'do')} not see {root} of rank 0 (host {views[0]['host']}),"
        " and there is no store: parts of one checkpoint would lie on different nodes, and no node"
        " could resume. Either put the checkpoint directory on a volume that is mounted at one"
        " path on each node (BT_CHECKPOINT_DIR), or give all nodes a store (BT_STORE_URL)"
    )
    raise InvalidSettingError(msg)


def _make_mark(root: Path) -> str:
    with directory_errors(root):
        folder = root / DOT_DIR
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / f"shared-{uuid.uuid4().hex}"
        mark.touch()
        sync_directory(folder)
    return str(mark)


def _view_of(mark: Path) -> dict[str, Any]:
    """Whether this rank sees the mark; another node may see a new file a little later."""
    until = time.monotonic() + _VISIBLE_S
    while not (sees := _is_there(mark)) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    return {"host": socket.gethostname(), "shares": sees}


def _is_there(mark: Path) -> bool:
    """Whether the file can be opened: that asks the server, where a mere look may ask a cache."""
    try:
        os.close(os.open(mark, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _can_see(path: str, digest: str | None) -> bool:
    local = local_path(path)
    try:
        if digest is not None and is_committed(local):
            return read_manifest(local).digest == digest
        return local.exists()
    except (CheckpointCorruptError, CheckpointNotFoundError, OSError):
        return False


def _compare(ranks: list[dict[str, Any]]) -> None:
    first = ranks[0]
    fresh = first["path"] is None
    other = [rank for rank, view in enumerate(ranks) if (view["path"] is None) != fresh]
    if other:
        path = ranks[other[0]]["path"]
        msg = (
            f"rank 0 starts from {first['path'] or 'nothing'}, and"
            f" {_named(other, ranks, 'starts', 'start')} from {path or 'nothing'}: give every rank"
            " the same ckpt_path, and let all nodes share the directory that it is in"
        )
        raise CheckpointNotFoundError(msg)
    unable = [rank for rank, view in enumerate(ranks) if not view["sees"]]
    if unable and len(unable) < len(ranks):
        path = ranks[unable[0]]["path"]
        able = next(rank for rank, view in enumerate(ranks) if view["sees"])
        msg = (
            f"{_named(unable, ranks, 'does', 'do')} not see {path}, from which the run resumes, and"
            f" rank {able} (host {ranks[able]['host']}) does: all nodes must share the"
            " checkpoint directory. Put it on a volume that is mounted at one path on each node,"
            " and give every rank that path (BT_CHECKPOINT_DIR)"
        )
        raise CheckpointNotFoundError(msg)


def _named(which: list[int], ranks: list[dict[str, Any]], one: str, many: str) -> str:
    """Ranks by number and host, followed by the verb for one or for many."""
    shown = ", ".join(f"{rank} (host {ranks[rank]['host']})" for rank in which[:_SHOWN])
    more = f" and {len(which) - _SHOWN} more" if len(which) > _SHOWN else ""
    return f"rank {shown} {one}" if len(which) == 1 else f"ranks {shown}{more} {many}"
