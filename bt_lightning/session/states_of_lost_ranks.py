"""What becomes of a save that lacks the state of a rank, which is gone."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.errors import RankLostError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.session.writer_session import WriterSession

T = TypeVar("T")


def of_all_ranks(
    collect: Callable[[], T],
    writer: WriterSession | None,
    left_s: Callable[[], float],
    origin: dict[str, str],
) -> T | None:
    """Every rank: what `collect` has of all ranks; `origin` is told if that is not to be had.

    `writer` is the session of the rank that writes.

    Raises:
        RankLostError: it is not to be had, on rank 0 if there is a whole checkpoint.
    """
    try:
        return collect()
    except RankLostError as error:
        if writer is None:
            raise
        _lacks(error, writer, left_s)
        origin["inexact"] = str(error)
        return None


def _lacks(error: RankLostError, writer: WriterSession, left_s: Callable[[], float]) -> None:
    """A save lacks the state of a rank: raise, unless there is nothing better."""
    writer.wait_for_saves(left_s)
    found = [one.manifest for one in list_committed(writer.config.root, foreign=False)[0]]
    if writer.known or any(m.resumable and "inexact" not in m.origin for m in found):
        msg = (
            f"{error}. The checkpoint was not saved, for it would lack that rank's generators"
            " and dataloader state: start again, which resumes from the newest one that is"
            " whole"
        )
        raise RankLostError(msg) from error
    warnings.warn(
        f"{error}. The checkpoint lacks that rank's generators and dataloader state, so a"
        " resume from it is not exact; it is saved since there is no other",
        stacklevel=2,
    )
