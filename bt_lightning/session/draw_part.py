"""Draws this rank's part of the next save, before anything that may fail on one rank alone."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.session.rank_session import RankSession
    from bt_lightning.sharding.save_part import SavePart


@dataclass(slots=True)
class DrawnPart:
    """A rank's part of a save that is being collected."""

    part: SavePart | None
    """None once it is taken."""

    def take(self) -> SavePart:
        """The part, for the session, which from here on tells what becomes of it."""
        part, self.part = self.part, None
        assert part is not None  # there is one save in a block
        return part


@contextmanager
def draw_part(session: RankSession, refuse: Callable[[BaseException], None]) -> Iterator[DrawnPart]:
    """This rank's part of the next save, in a block that every rank enters once for it.

    What fails in the block before the part is taken is told to all ranks, and to `refuse`.
    """
    parts = session.parts
    assert parts is not None  # since the ranks write parts
    drawn = DrawnPart(parts.next())
    try:
        yield drawn
    except BaseException as error:
        if drawn.part is not None:
            session.miss(drawn.part, error)
            refuse(error)
        raise
