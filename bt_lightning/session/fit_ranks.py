"""The other ranks of a fit, as this one deals with them: from `setup` until it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.session.agree_on_boundary import RankAgreement, SingleRankAgreement
from bt_lightning.session.leave_fit_together import FitEnd
from bt_lightning.session.process_group_store import next_key
from bt_lightning.session.rank_exchange import RankExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.rank_protocol import Request
    from bt_lightning.session.ranks import Ranks


class FitRanks:
    """Made by every rank at the same moment, when the process group is there."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._peers = RankExchange(ranks) if ranks.world_size > 1 else None
        self._farewell: FitEnd | None = None
        self._ends_well = False

    def begin(self) -> None:
        """Every rank: the fit starts."""
        lost = self._peers.lost if self._peers is not None else None
        self._farewell = FitEnd(self._ranks, lost)

    def agreement(self, wish: Callable[[], Request | None]) -> SingleRankAgreement | RankAgreement:
        """Every rank: the training starts."""
        if self._peers is None:
            return SingleRankAgreement(wish)
        return RankAgreement(self._peers, next_key("agreement"), wish)

    def exchange(self, payload: bytes, left_s: Callable[[], float]) -> list[bytes] | None:
        """Every rank, in a save: bring a payload of each to rank 0; None on the others.

        Raises:
            RankLostError: a rank is gone, or comes too late: half an hour, or `left_s`.
        """
        return [payload] if self._peers is None else self._peers.exchange(payload, left_s)

    def agreed(self) -> None:
        """All ranks end here, as they agreed: what this one raises is no failure."""
        self._ends_well = True

    def fail(self, error: BaseException) -> None:
        """Any rank: an exception ends the fit; no other rank shall wait for this one."""
        if self._peers is not None and not self._ends_well:
            self._peers.leave(error)

    def part(self, is_told: Callable[[], bool]) -> bool:
        """Every rank, with nothing left to do: no rank leaves a fit before rank 0 does.

        Whether all end by a signal.
        """
        farewell, self._farewell = self._farewell, None
        if farewell is None:
            return False  # the fit did not begin
        if self._peers is None or self._peers.rank == 0:
            return farewell.say(told=is_told())
        return farewell.hear(is_told)

    def close(self) -> None:
        """This rank leaves the fit."""
        if self._peers is not None:
            self._peers.close()
