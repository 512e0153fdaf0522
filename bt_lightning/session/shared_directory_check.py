"""Whether every rank of a fit sees what rank 0 sees: its checkpoint, and its directory."""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.session.checkpoint_paths import is_committed, is_url, local_path

if TYPE_CHECKING:
    from bt_lightning.session.ranks import Ranks

log = logging.getLogger(__name__)

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ResumedFrom:
    """What rank 0 found a path to be."""

    digest: str | None = None
    """Of its manifest; None for a stock file."""
    stored: bool = False
    """Whether each rank reads it from the store."""


def check_same_view(ranks: Ranks, path: str | None, chosen: ResumedFrom, mark: str | None) -> None:
    """Every rank: check that each can read what it resumes from, before one of them begins to.

    A rank that cannot would end alone, and the others would wait for it. `mark` is what rank 0
    made in the checkpoint directory: who does not see it could not resume from there.

    Raises:
        CheckpointNotFoundError: on every rank, if some see it and some do not.
    """
    if ranks.world_size == 1:
        return
    mine = {
        "host": socket.gethostname(),
        "path": path,
        "sees": path is None or chosen.stored or is_url(path) or _sees(path, chosen.digest),
        "shares": mark is None or Path(mark).exists(),
    }
    seen: list[dict[str, Any]] = [json.loads(said) for said in ranks.gather(json.dumps(mine))]
    _compare(seen)
    apart = [rank for rank, said in enumerate(seen) if not said["shares"]]
    if apart and ranks.is_zero:
        log.warning(
            "%s not see the checkpoint directory of rank 0 (host %s). This run goes on, but a"
            " restart of it will be refused: let all nodes share the directory, a volume that is"
            " mounted at one path on each of them",
            _named(apart, seen, "does", "do"),
            seen[0]["host"],
        )


def _sees(path: str, digest: str | None) -> bool:
    place = local_path(path)
    try:
        if digest is not None and is_committed(place):
            return read_manifest(place).digest == digest
        return place.exists()
    except (CheckpointCorruptError, CheckpointNotFoundError, OSError):
        return False


def _compare(ranks: list[dict[str, Any]]) -> None:
    first = ranks[0]
    anew = first["path"] is None
    other = [rank for rank, said in enumerate(ranks) if (said["path"] is None) != anew]
    if other:
        path = ranks[other[0]]["path"]
        msg = (
            f"rank 0 starts from {first['path'] or 'nothing'}, and"
            f" {_named(other, ranks, 'starts', 'start')} from {path or 'nothing'}: give every rank"
            " the same ckpt_path, and let all nodes share the directory that it is in"
        )
        raise CheckpointNotFoundError(msg)
    blind = [rank for rank, said in enumerate(ranks) if not said["sees"]]
    if blind and len(blind) < len(ranks):
        path = ranks[blind[0]]["path"]
        seeing = next(rank for rank, said in enumerate(ranks) if said["sees"])
        msg = (
            f"{_named(blind, ranks, 'does', 'do')} not see {path}, from which the run resumes, and"
            f" rank {seeing} (host {ranks[seeing]['host']}) does: all nodes must share the"
            " checkpoint directory. Put it on a volume that is mounted at one path on each node,"
            " and give every rank that path (BT_CHECKPOINT_DIR)"
        )
        raise CheckpointNotFoundError(msg)


def _named(which: list[int], ranks: list[dict[str, Any]], one: str, many: str) -> str:
    """Ranks by number and host, with the verb that goes with so many."""
    shown = ", ".join(f"{rank} (host {ranks[rank]['host']})" for rank in which[:_SHOWN])
    more = f" and {len(which) - _SHOWN} more" if len(which) > _SHOWN else ""
    return f"rank {shown} {one}" if len(which) == 1 else f"ranks {shown}{more} {many}"
